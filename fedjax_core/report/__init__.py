"""A self-contained page about a run, made from its folder alone: `fedjax-core report RUN_DIR`.

    facts       the folder's content: records of rounds, configuration, digests, audit logs, the study's notes
    note        adds what only the study knows: its question, the flow of people, performance by site and
                subgroup, calibration
    charts      SVG
    checklist   TRIPOD+AI, by item: filled from the run, or marked "for the author"
    page        HTML
    live        the same for a terminal, while the run goes on: `fedjax-core watch RUN_DIR`

>>> import tempfile
>>> folder = tempfile.mkdtemp()
>>> note(folder, question="Who dies within 30 days?")
>>> "Who dies within 30 days?" in page(gather(folder))
True
"""

from fedjax_core.report.facts import Facts, gather, note
from fedjax_core.report.page import page

__all__ = ["Facts", "gather", "note", "page"]
