"""The examples of a site: opened, without bad records where its policy has them skipped, checked, and as the
study prepares them.

    raw      as they lie there, but for those held out           what sums for preprocessing are of
    clients  by the numbers that the last request brought        what is trained and counted on; `raw` where the study prepares nothing
    judged   those held out, prepared likewise                   what models are evaluated on; `clients` where the study holds nobody out

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
    """What a site has, for one study."""

    def __init__(self, site_file: SiteFile, study: Study, key: SiteKey | None = None) -> None:
        """Raises ValueError where the study cannot use it. `key`: the site's own, by which the fingerprint is
        made."""
        self._study, self._labels = study, site_file.labels
        clients, self.bad = opened(site_file, study)
        """Positions of the bad records, which are left out; None where the policy does not ask for it."""
        self._persons = persons_of(clients)
        clients = clients.without(*({PERSON} & set(clients.named_columns)))
        self.fingerprint = fingerprint(clients, site_file.order, key)
        self.raw, self._held = parted(clients, site_file.folder)
        """The examples to train on, as they lie there."""
        self.clients = self.raw
        """The same as the study prepares them, once it is known how."""
        self.judged = self.raw if self._held is None else self._held
        """The examples by which models are judged, as the study prepares them: those held out, or those
        trained on."""
        self.schema = schema.as_fields(schema.items_of(schema.columns(self.raw), self.raw.features))
        """Fields that say what columns there are."""
        self.plan = study.plan(site_file.order)
        """Of which batches are made; where clients differ in it, that of this one once it is `placed`."""
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
        """By which the site's policy is asked, whatever the request."""
        self._preparation = (
            preprocessing.Preparation(study.prepare, self.raw, self._check, site_file.folder)
            if study.prepare
            else None
        )
        self._departments: Departments | None = None
        if not too_many_bad(site_file, self.base_request.bad):  # of which the policy refuses every request
            check_study(study, clients)

    @cached_property
    def persons(self) -> np.ndarray:
        """[examples of `raw`] whose each is, as codes: by the site's column of persons, or by the values of
        the row."""
        return persons_by_values(self.raw) if self._persons is None else self._persons

    @property
    def skipped(self) -> int | None:
        """How many bad records were left out; None where the policy does not ask for it."""
        return None if self.bad is None else len(self.bad)

    @property
    def counted(self) -> dict[str, Scalar]:
        """How many clients the site is in a study of departments: those with examples; nothing in others."""
        return {"clients": int(np.count_nonzero(self.raw.sizes))} if self._study.departments else {}

    @property
    def held_out(self) -> dict[str, Scalar]:
        """How many examples are held out, in a study that does so."""
        return {} if self._held is None else {"held_out": self._held.examples}

    @property
    def departments(self) -> Departments:
        """The site's departments, with their examples as the study prepares them now."""
        if self._departments is None or self._departments.clients is not self.clients:
            self._departments = Departments(self._study.round, self.clients, self.plan)
        return self._departments

    @property
    def numbers(self) -> str | None:
        """The digest of those by which `clients` are prepared."""
        return None if self._preparation is None else self._preparation.digest

    def prepared(self, envelope: Envelope) -> Envelope:
        """The request without the numbers of preprocessing, by which `clients` then are."""
        if self._preparation is not None:
            before, envelope = self.numbers, self._preparation.take(envelope)
            self.clients = self._preparation.clients
            if self._held is None:
                self.judged = self.clients
            elif self.numbers != before:
                self.judged = self._preparation.of(self._held)
        return envelope

    def placed(self, position: int) -> None:
        """Takes the site's position among all, by which the study's plan may say how much each does."""
        if self._of_all.changes:
            self.plan = self._of_all.of_client(position)

    def used(self, round: int, work: Work, steps: int | None) -> tuple[int, Mapping[str, int] | None]:
        """(how many examples, of each class how many) so many steps of an exchange are computed of; None: all
        steps."""
        plan = self.plan.of(work)
        if steps is None and plan.epochs is not None and plan.order is None:
            return self.raw.examples, self.base_request.per_class
        rows = np.unique(self._rows(round, work, steps))
        return len(rows), self._classes(self.raw, rows)

    def stop(self, round: int, work: Work, done: int, least: int) -> int:
        """After which step, these or a later one, training may stop: between two such are so many examples at
        least, and so are after it.

        Where fewer were trained on by then, it may at once: nothing is told of them.
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
        """How often an example is looked at in an exchange, at most: by so much a sum over the steps may
        count it."""
        plan = self.plan.of(work)
        epochs = plan.epochs if plan.order is None else None
        return epochs if isinstance(epochs, int) else int(np.bincount(self._rows(round, work)).max(initial=1))

    def _rows(self, round: int, work: Work, steps: int | None = None) -> np.ndarray:
        """The examples of so many steps of an exchange, None: of all; an example stands there as often as it
        is used."""
        rows = self._batches(round, work)[:steps].ravel()
        return rows[rows >= 0]

    def _batches(self, round: int, work: Work) -> np.ndarray:
        """[T, B]: the batches of an exchange of the round, as `Plan` has them."""
        return self.plan.of(work).batches(
            np.arange(len(self.raw)), self.raw.offsets, self.raw.addresses, round
        )[0]

    @property
    def judged_of(self) -> tuple[int, Mapping[str, int] | None]:
        """(how many examples, of each class how many) a model is judged by."""
        return (
            (self.raw.examples, self.base_request.per_class)
            if self._held is None
            else (self._held.examples, self._classes(self._held))
        )

    def _classes(self, clients: Clients, rows: slice | np.ndarray = slice(None)) -> dict[str, int] | None:
        """How many of these examples each class has, a class that none of the site's examples has among them;
        None without labels."""
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
        """Raises where the task cannot use these examples, once they are prepared, or a model's 32 bits do
        not hold them."""
        clients.check_numbers()
        check_data(self._study.round.algorithm.task, clients, self._study.batch_size)


def check_study(study: Study, clients: Clients) -> None:
    """Raises where the study's task cannot be trained on these examples, as a simulation of them would.

    Where the study prepares its columns, shapes are looked at, and the values that no other site has a say
    in, such as labels: the rest when all sites' numbers are there.
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
    """A short name for the site's data, and for the order of its batches where that is given: the same as
    long as these and the key are.

    It leaves the site, so it is made with a secret that the site's `key` gives (HMAC-SHA256). Without one,
    whoever knows all records but one would find that one by trying. None is for data that the coordinator's
    own process handed over."""
    content = clients.fingerprint().encode()
    if not (order is None or callable(order)):
        content += f"{order.shape}".encode() + np.ascontiguousarray(order, "<i8").tobytes()
    return (sha256(content) if key is None else hmac.new(key.secret("data"), content, sha256)).hexdigest()[
        :16
    ]


def absent(classes: int, task: Task) -> dict[str, int]:
    """Of a site that has examples of so many classes: a class without any, where the task has more; of one
    class alone, there are two."""
    return {"none of them": 0} if classes < max(2, task.classes or 0) else {}
