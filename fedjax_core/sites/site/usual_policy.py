"""The policy of a site without a policy file: only the first study, and its metrics may leave."""

import dataclasses

import jax
import numpy as np

from fedjax_core import keys
from fedjax_core.composition import check_metrics, protecting_steps
from fedjax_core.data.clients import Clients
from fedjax_core.data.columns import narrow
from fedjax_core.sites import policy
from fedjax_core.sites.policy import Policy
from fedjax_core.sites.protocol.report import LEFT, PARTIAL
from fedjax_core.sites.site import preprocessing
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.study import Study
from fedjax_core.task import check_task
from fedjax_core.types import Batch

_TRIES = 10_000  # evaluations a day


def usual_policy(site_file: SiteFile, study: Study, clients: Clients) -> Policy:
    """The policy of a site without a policy file: only the first study, and its metrics may leave.

    A site whose file names its study is a real one: it has the minimums of new policies (`policy.SAFE`). A
    site that is handed its study is a trial in one's own process or trust domain: it has no minimums, and
    evaluates any model."""
    # A range discloses single persons.
    sums = [name for name in preprocessing.leaving(study.prepare) if name != "range"]
    clients_ = ("clients",) if study.departments else ()
    left = LEFT if study.measurable else ()
    fields = (
        "weight",
        "examples",
        "data",
        *clients_,
        *study.stats,
        *sorted({*left, *PARTIAL, *metrics_of(study, clients), *sums}),
    )
    usual = Policy(site_file.name, tasks=policy.Tasks("first-use"), leaving=policy.Leaving(fields))
    if site_file.study is None:
        usual = dataclasses.replace(usual, leaving=policy.Leaving((*fields, "statistics")))
        return dataclasses.replace(usual, evaluation=policy.Evaluation("any", per_day=_TRIES))
    return dataclasses.replace(usual, minimum=minimum_of(site_file))


def minimum_of(site_file: SiteFile) -> policy.Minimum:
    """The minimums of a new policy for a site: of each class too if its file names the column of classes."""
    return policy.SAFE if site_file.labels is not None else dataclasses.replace(policy.SAFE, per_class=0)


def metrics_of(study: Study, clients: Clients) -> list[str]:
    """The names of all metrics in training and evaluation; raises if one could not be reported."""
    task, columns = study.round.algorithm.task, narrow(preprocessing.one_row(study.prepare, clients))
    check_task(task, columns, study.batch_size)
    steps = check_metrics(study.round, columns, study.batch_size)
    params = jax.eval_shape(task.init, keys.shape())
    shapes = jax.eval_shape(task.evaluation, params, Batch(columns, np.ones(1, np.float32)))  # type: ignore[arg-type]
    return sorted({*steps, *shapes})


def protecting(study: Study, clients: Clients) -> tuple[bool, ...]:
    """For each exchange, whether its steps draw protecting noise; raises if departments would draw it openly,
    or if its promise counts on Poisson samples, which sites do not draw."""
    columns = narrow(preprocessing.one_row(study.prepare, clients))
    draws_noise = protecting_steps(study.round, columns, study.batch_size)
    if any(protecting_steps(study.round, columns, study.batch_size, sampled=True)):
        raise ValueError(
            'the promise of the study\'s steps (fc.privacy.example_level, sampling="poisson") counts on batches that are Poisson samples, '
            'and sites go through their data in passes, which tell more: take sampling="passes", or a simulation'
        )
    if study.departments and any(draws_noise):
        raise ValueError(
            "the steps of the study draw noise that protects examples (fc.privacy.example_level), and departments draw by the run's key, "
            "which everybody knows: leave departments out"
        )
    return draws_noise
