"""Points of a run at which something is to happen, once: `arm` them in the process of the coordinator."""

from fedjax_core.run import checkpoint
from fedjax_core.sites import audit

POINTS = (
    "before broadcast",
    "after 1 result",
    "after aggregation",
    "in the middle of a checkpoint",
    "before its commit",
)


def arm(point, number, strike, once):
    """Has `strike()` called when the run comes to this point of round `number`, unless the file `once` is
    there; then it is."""

    def come():
        if not once.exists():
            once.parent.mkdir(parents=True, exist_ok=True)
            once.touch()
            strike()

    if point == "in the middle of a checkpoint":
        _after(checkpoint, "_file_digest", lambda path, **_: f"writing-{number:08d}" in str(path), come)
    elif point == "before its commit":  # all is written, and not yet in its place
        _after(
            checkpoint,
            "write_whole",
            lambda path, text, **_: path.parent.name == f"writing-{number:08d}",
            come,
        )
    else:
        what = {"before broadcast": "asked", "after 1 result": "update", "after aggregation": "round"}[point]

        def here(log, who, said, *, round=None, about=None, **_):
            return (
                said == what
                and round == number
                and log.folder.parent.name == "coordinator"
                and (about or {}).get("kind") != "describe"
            )

        _after(audit.Log, "record", here, come)


def _after(owner, name, here, come):
    inner = getattr(owner, name)

    def outer(*args, **kwargs):
        found = inner(*args, **kwargs)
        if here(*args, **kwargs):
            come()
        return found

    setattr(owner, name, outer)
