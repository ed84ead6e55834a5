"""`SiteData`: the examples of a site, opened and checked for a study, and as the study prepares them.

    raw      the raw examples to train on              for sums of preprocessing
    clients  `raw`, prepared by the last parameters    for training; `raw` if the study prepares nothing
    judged   those held out, prepared likewise         for evaluation; `clients` if none are held out

>>> import optax
>>> from fedjax_core import algorithms, compose, models
>>> study = Study(compose(algorithms.fedavg(models.linear(features=2), local=optax.sgd(0.1))), batch_size=2, epochs=1)
>>> columns = {"x": np.ones((3, 2), np.float32), "y": np.array([0, 1, 1], np.float32)}
>>> data = SiteData(SiteFile(name="charite", data=columns, labels="y"), study)
>>> data.clients.examples, data.skipped, data.base_request.per_class
(3, None, {'0.0': 1, '1.0': 2})
"""

import hmac
from collections.abc import Mapping
from functools import cached_property
from hashlib import sha256

import numpy as np

from fedjax_core.data.batches import Order
from fedjax_core.data.clients import Clients
from fedjax_core.data.task_check import check_data
from fedjax_core.sites.policy import Request
from fedjax_core.sites.protocol import schema
from fedjax_core.sites.site import preprocessing
from fedjax_core.sites.site.departments import Departments
from fedjax_core.sites.site.held_out import PERSON, parted, persons_by_values, persons_of
from fedjax_core.sites.site.load import opened, too_many_bad
from fedjax_core.sites.site.records import check_known
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.study import Study
from fedjax_core.sites.wire.canonical import Scalar
from fedjax_core.sites.wire.envelope import Envelope
from fedjax_core.sites.wire.identity import SiteKey
from fedjax_core.task import Task, check_task
from fedjax_core.work import Work


class SiteData:
    """The examples of one site, for one study."""

    def __init__(self, site_file: SiteFile, study: Study, key: SiteKey | None = None) -> None:
        """Raises ValueError if the study cannot use the data. `key`: the site's own, for the fingerprint."""
        self._study, self._labels = study, site_file.labels
        clients, self.bad = opened(site_file, study)
        """The positions of the bad records, which are left out; None if the policy does not have them
        skipped."""
        self._persons = persons_of(clients)
        clients = clients.without(*({PERSON} & set(clients.named_columns)))
        self.fingerprint = fingerprint(clients, site_file.order, key)
        self.raw, self._held = parted(clients, site_file.folder)
        """The raw examples to train on."""
        self.clients = self.raw
        """The examples to train on, as the study prepares them once its parameters are known."""
        self.judged = self.raw if self._held is None else self._held
        """The examples for evaluation, as the study prepares them: those held out, or those trained on."""
        self.schema = schema.as_fields(schema.items_of(schema.columns(self.raw), self.raw.features))
        """The fields of a message that describe the columns."""
        self.plan = study.plan(site_file.order)
        """The plan of batches; if clients differ in it, this client's once it is `placed`."""
        self._of_all = self.plan
        skipped, every, least = (
            self.skipped or 0,
            clients.examples,
            int(self.raw.sizes[self.raw.sizes > 0].min()),
        )
        self.base_request = Request(
            study.hash, self.raw.examples, self._classes(self.raw), clip=study.clip,
            noise=study.noise, whole=study.whole, bad=skipped / (every + skipped), department=least if study.departments else None,
            secure=study.round.uplink.hides,
        )  # fmt: skip
        """What the site's policy is asked in every request."""
        self._preparation = (
            preprocessing.Preparation(study.prepare, self.raw, self._check, site_file.folder)
            if study.prepare
            else None
        )
        self._departments: Departments | None = None
        if not too_many_bad(site_file, self.base_request.bad):  # else the policy refuses every request anyway
            check_study(study, clients)

    @cached_property
    def persons(self) -> np.ndarray:
        """[examples of `raw`] the person of each, as codes: from the site's column of persons, or from the
        row's values."""
        return persons_by_values(self.raw) if self._persons is None else self._persons

    @property
    def skipped(self) -> int | None:
        """The number of bad records left out; None if the policy does not have them skipped."""
        return None if self.bad is None else len(self.bad)

    @property
    def counted(self) -> dict[str, Scalar]:
        """The field with the number of clients, those with examples, in a study of departments; empty in
        others."""
        return {"clients": int(np.count_nonzero(self.raw.sizes))} if self._study.departments else {}

    @property
    def held_out(self) -> dict[str, Scalar]:
        """The field with the number of held-out examples, in a study that holds some out; empty in others."""
        return {} if self._held is None else {"held_out": self._held.examples}

    @property
    def departments(self) -> Departments:
        """The site's departments, with their prepared examples."""
        if self._departments is None or self._departments.clients is not self.clients:
            self._departments = Departments(self._study.round, self.clients, self.plan)
        return self._departments

    @property
    def numbers(self) -> str | None:
        """The digest of the parameters by which `clients` are prepared; None without preprocessing."""
        return None if self._preparation is None else self._preparation.digest

    def prepared(self, envelope: Envelope) -> Envelope:
        """Applies the preprocessing parameters in a request to the examples, and returns the request without
        them."""
        if self._preparation is not None:
            before, envelope = self.numbers, self._preparation.take(envelope)
            self.clients = self._preparation.clients
            if self._held is None:
                self.judged = self.clients
            elif self.numbers != before:
                self.judged = self._preparation.of(self._held)
        return envelope

    def placed(self, position: int) -> None:
        """Sets the site's position among all, on which the study's plan may depend."""
        if self._of_all.changes:
            self.plan = self._of_all.of_client(position)

    def used(self, round: int, work: Work, steps: int | None) -> tuple[int, Mapping[str, int] | None]:
        """(number of examples, number of each class) behind so many steps of an exchange; None: all steps."""
        plan = self.plan.of(work)
        if steps is None and plan.epochs is not None and plan.order is None:
            return self.raw.examples, self.base_request.per_class
        rows = np.unique(self._rows(round, work, steps))
        return len(rows), self._classes(self.raw, rows)

    def stop(self, round: int, work: Work, done: int, least: int) -> int:
        """The step, `done` or a later one, after which training may stop: at least `least` examples lie
        between two such steps, and after one.

        If fewer examples were used by then, it may stop at once: nothing is reported of them.
        """
        rows = self._batches(round, work)
        begun, seen = False, set[int]()
        for step, row in enumerate(rows, start=1):
            seen.update(row[row >= 0].tolist())
            if len(seen) >= least:
                if not begun and done < step:
                    return done
                if done <= step:
                    return step if len(np.unique(rows[step:][rows[step:] >= 0])) >= least else len(rows)
                begun, seen = True, set()
        return len(rows) if begun else done

    def visits(self, round: int, work: Work) -> int:
        """The most passes over an example in an exchange, which bounds how often a sum over steps counts
        it."""
        plan = self.plan.of(work)
        epochs = plan.epochs if plan.order is None else None
        return epochs if isinstance(epochs, int) else int(np.bincount(self._rows(round, work)).max(initial=1))

    def _rows(self, round: int, work: Work, steps: int | None = None) -> np.ndarray:
        """The examples used in so many steps of an exchange (None: all), each as often as it is used."""
        rows = self._batches(round, work)[:steps].ravel()
        return rows[rows >= 0]

    def _batches(self, round: int, work: Work) -> np.ndarray:
        """[T, B] the batches of an exchange, as in `Plan`."""
        return self.plan.of(work).batches(
            np.arange(len(self.raw)), self.raw.offsets, self.raw.addresses, round
        )[0]

    @property
    def judged_of(self) -> tuple[int, Mapping[str, int] | None]:
        """(number of examples, number of each class) in evaluation."""
        return (
            (self.raw.examples, self.base_request.per_class)
            if self._held is None
            else (self._held.examples, self._classes(self._held))
        )

    def _classes(self, clients: Clients, rows: slice | np.ndarray = slice(None)) -> dict[str, int] | None:
        """{class: number of these examples}, with a class that the site lacks; None without labels."""
        if self._labels is None:
            return None
        labels = clients.columns[self._labels]
        names = np.unique(
            np.concatenate(
                [part.columns[self._labels] for part in (self.raw, self._held) if part is not None]
            )
        )
        counts = np.bincount(np.searchsorted(names, labels[rows]), minlength=len(names))
        by_class = {str(name): int(count) for name, count in zip(names, counts, strict=True)}
        return by_class | absent(len(names), self._study.round.algorithm.task)

    def _check(self, clients: Clients) -> None:
        """Raises if the task cannot use these prepared examples, or a model's 32 bits cannot hold them."""
        clients.check_numbers()
        check_data(self._study.round.algorithm.task, clients, self._study.batch_size)


def check_study(study: Study, clients: Clients) -> None:
    """Raises, as a simulation would, if the study's task cannot be trained on these examples.

    If the study prepares its columns, only shapes are checked, and values that do not depend on other sites,
    such as labels; the rest follows when all sites' parameters are there.
    """
    task = study.round.algorithm.task
    if study.prepare:
        check_task(task, preprocessing.one_row(study.prepare, clients), study.batch_size)
        if (known := preprocessing.alone(study.prepare, clients)) is not None:
            check_known(task, known)
    else:
        clients.check_numbers()
        check_data(task, clients, study.batch_size)


def fingerprint(clients: Clients, order: Order | None, key: SiteKey | None) -> str:
    """A short fingerprint of the site's data, of a given order of batches, and of the key.

    It leaves the site, so it is an HMAC-SHA256 under a secret from the site's `key`. Without a secret,
    somebody who knows all records but one could find that one by trying. None: for data that the
    coordinator's own process handed over."""
    content = clients.fingerprint().encode()
    if not (order is None or callable(order)):
        content += f"{order.shape}".encode() + np.ascontiguousarray(order, "<i8").tobytes()
    return (sha256(content) if key is None else hmac.new(key.secret("data"), content, sha256)).hexdigest()[
        :16
    ]


def absent(classes: int, task: Task) -> dict[str, int]:
    """A class without examples, if the task has more classes than the site; a task has at least two."""
    return {"none of them": 0} if classes < max(2, task.classes or 0) else {}
