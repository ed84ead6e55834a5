"""Checks of the study at this site: its data, task, labels and code, and the site's policy on it."""

import contextlib
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from fedjax_core.data.clients import Clients
from fedjax_core.sites.doctor.base import Settings, Skipped, Unfit
from fedjax_core.sites.doctor.expected import code
from fedjax_core.sites.doctor.machine import key_path
from fedjax_core.sites.policy import PINNED, SAFE, Policy, Request, Tasks, pinned
from fedjax_core.sites.policy.privacy_ledger import Ledger, NoAccount, epsilon
from fedjax_core.sites.protocol.kinds import leaving
from fedjax_core.sites.protocol.schema import as_fields, columns, difference, items_of
from fedjax_core.sites.refusal import listed
from fedjax_core.sites.site import preprocessing, reviewed
from fedjax_core.sites.site.data import absent, check_study, fingerprint
from fedjax_core.sites.site.held_out import parted
from fedjax_core.sites.site.load import load_data, opened, too_many_bad
from fedjax_core.sites.site.usual_policy import metrics_of, minimum_of
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.study import Study, build
from fedjax_core.sites.wire.identity import Roster, SiteKey


def _opened(site_file: SiteFile) -> Clients:
    """The site's data as the site opens them: NaN may stand where preprocessing fills it, and bad records may
    be left out."""
    if (built := _built(site_file)) is not None:
        return opened(_policy_read(site_file), built)[0]
    clients = load_data(site_file)
    clients.check_numbers()
    return clients


def _policy_read(site_file: SiteFile) -> SiteFile:
    """The site's file, without its policy if that cannot be read, which another check reports."""
    try:
        if site_file.policy is not None:
            Policy.read(site_file.policy)
    except (OSError, ValueError):
        return replace(site_file, policy=None)
    return site_file


def _built(site_file: SiteFile) -> Study | None:
    """The study that the file names; None if it cannot be built, which another check reports."""
    with contextlib.suppress(Exception):
        return None if site_file.study is None else build(site_file.study, site_file.arguments)
    return None


def _steps(built: Study | None) -> preprocessing.Steps:
    return () if built is None else built.prepare


def data(site_file: SiteFile, settings: Settings) -> str:
    """Checks that the data open, and have the columns, features and fingerprint of the study."""
    opened, expected = _opened(site_file), settings.expected
    clients, held = parted(opened)
    here = columns(clients)
    if expected.columns and here != expected.columns:
        odd = [name for name in {**expected.columns, **here} if here.get(name) != expected.columns.get(name)]
        text = "; ".join(
            f"{name} is {here.get(name, 'absent')}, not {expected.columns.get(name, 'expected')}"
            for name in odd[:5]
        )
        raise Unfit(
            f"the columns are not those of the study: {text}. Convert the data, and save it again with Clients.save"
        )
    if expected.features and dict(clients.features) != {
        name: tuple(of) for name, of in expected.features.items()
    }:
        here_, there = (items_of(expected.columns, of) for of in (clients.features, expected.features))
        raise Unfit(
            f"the features are not those of the study: {difference('this site', as_fields(here_), 'the study', as_fields(there))}"
        )
    path, key, text = (
        key_path(site_file),
        None,
        f"{clients.examples} examples of {listed(here)}{'' if held is None else f', and {held.examples} held out'}",
    )
    with contextlib.suppress(OSError, ValueError):  # another check reports it
        key = None if path is None else SiteKey.load(path)
    if key is None:
        return f"{text}, which have a fingerprint once the site has a key"
    known, now = expected.data.get(site_file.name), fingerprint(opened, site_file.order, key)
    if known is not None and known != now:
        raise Unfit(
            f"the data have the fingerprint {now}, and {known} is known: the data are others, or the site's key is. "
            f"Where that is meant, set data_was = {known!r}"
        )
    return f"{text}, fingerprint {now}"


def task(site_file: SiteFile, settings: Settings) -> str:
    """Checks that the study's task can be trained on the data."""
    if (built := _built(site_file)) is None:
        raise Skipped("there is no study here that the data could be looked at with")
    site_file = _policy_read(site_file)
    try:
        clients, bad = opened(site_file, built)
    except Exception:
        raise Skipped("the data cannot be opened, as is said above") from None
    skipped, notes = 0 if bad is None else len(bad), ""
    if too_many_bad(site_file, skipped / (clients.examples + skipped)):
        raise Unfit(
            f"{skipped} of {clients.examples + skipped} records are bad, which is more than the policy leaves out (max_bad_share): mend "
            "those that errors.log names once the site was opened, or raise the share after review"
        )
    check_study(built, clients)
    if bad is not None:
        notes = f", {skipped} bad records left out"
    kept = (
        []
        if site_file.policy is None
        else [
            one
            for one in metrics_of(built, clients)
            if one not in Policy.read(site_file.policy).leaving.fields
        ]
    )
    notes += f"; of what it measures {listed(kept)} would not leave (leaving.fields)" if kept else ""
    return f"the study's task can be trained on the data{notes}" + (
        ", as far as is known before they are prepared" if built.prepare else ""
    )


def labels(site_file: SiteFile, settings: Settings) -> str:
    """Checks that there are as many examples of each class as the policy asks for."""
    if site_file.policy is None and site_file.study is None:
        raise Skipped("the site has no policy of its own")
    minimum = minimum_of(site_file) if site_file.policy is None else Policy.read(site_file.policy).minimum
    clients, held = parted(_opened(site_file))
    if clients.examples < minimum.examples:
        raise Unfit(
            f"{clients.examples} examples, and the policy asks for {minimum.examples} (minimum.examples)"
        )
    if held is not None and held.examples < minimum.examples:
        raise Unfit(
            f"{held.examples} examples are held out, and the policy asks for {minimum.examples} (minimum.examples): no model would "
            "be judged here. Agree on a larger share, or lower the minimum after review"
        )
    least = int(clients.sizes[clients.sizes > 0].min())
    if (built := _built(site_file)) is not None and built.departments and least < minimum.department:
        raise Unfit(
            f"a department has {least} examples, and the policy asks for {minimum.department}: put small ones together (minimum.department)"
        )
    if (
        built is not None
        and isinstance(built.steps, int)
        and built.steps * built.batch_size < minimum.examples
    ):
        raise Unfit(
            f"a report of the study is of {built.steps * built.batch_size} examples at most, and the policy asks for {minimum.examples} "
            "(minimum.examples): it would never leave. Decline the study, or have it take more steps"
        )
    if not minimum.examples:
        return f"{clients.examples} examples, and the policy asks for none: set minimum.examples, such as {SAFE.examples}"
    if not minimum.per_class:
        return f"{clients.examples} examples, {minimum.examples} asked for"
    if site_file.labels is None or site_file.labels not in clients.columns:
        raise Unfit(
            f"the policy asks for {minimum.per_class} of each class, and `labels` names no column of the data ({site_file.labels})"
        )
    classes, counts = np.unique(clients.columns[site_file.labels], return_counts=True)
    if len(classes) < minimum.classes or (
        built is not None and absent(len(classes), built.round.algorithm.task)
    ):
        raise Unfit(
            f"the only classes with examples are {listed(classes.tolist())}, and the task has more: the policy asks for "
            f"{minimum.per_class} of each (minimum.per_class)"
        )
    if few := [
        f"{name}: {count}" for name, count in zip(classes, counts, strict=True) if count < minimum.per_class
    ]:
        raise Unfit(
            f"too few of some classes ({', '.join(few[:5])}), and the policy asks for {minimum.per_class} (minimum.per_class)"
        )
    return f"{len(classes)} classes, each with {counts.min()} examples or more, {minimum.per_class} asked for"


def policy(site_file: SiteFile, settings: Settings) -> str:
    """Checks that the policy allows the study, and lets what it needs leave."""
    built = _built(site_file)
    steps = _steps(built)
    if site_file.policy is None:
        if "range" in preprocessing.leaving(steps):
            raise Unfit(
                "the study needs 'range', which is of single persons and leaves only where a policy of the site's own names it"
            )
        raise Skipped(
            "the site has no policy of its own: the first study asked for is the only one, and its metrics may leave"
        )
    site_policy, study = Policy.read(site_file.policy), settings.expected.study
    if site_policy.site != site_file.name:
        raise Unfit(
            f"{site_file.policy} is the policy of {site_policy.site!r}, and the site is {site_file.name!r}"
        )
    if site_policy.withdrawn or site_policy.paused:
        raise Unfit(
            f"{site_file.policy} says that the site is {'withdrawn' if site_policy.withdrawn else 'paused'}: it would decline everything"
        )
    study = study if built is None else built.hash  # another check reports a difference
    if site_policy.tasks.mode == "list" and study and study not in site_policy.tasks.allowed:
        raise Unfit(
            f"{site_file.policy} does not allow the study {study}: add it to tasks.allowed after review"
        )
    pin = None if site_file.folder is None else pinned(site_file.folder / PINNED)
    if (
        site_policy.tasks.mode == "first-use"
        and study
        and pin not in (None, study)
        and study not in site_policy.tasks.allowed
    ):
        raise Unfit(
            f"{site_file.folder} pins the study {pin}, which was asked for first, and this one is {study}: add it to "
            "tasks.allowed after review"
        )
    hides = built is not None and built.round.uplink.hides
    always = leaving(
        "train",
        departments=built is not None and built.departments,
        stats=() if built is None else built.stats,
        secure=hides,
    )
    if kept := [name for name in always if name not in site_policy.leaving.fields]:
        raise Unfit(
            f"{site_file.policy} does not let {listed(kept)} leave, which every report has: add it to leaving.fields"
        )
    if sums := preprocessing.held_back(steps, site_policy.leaving.fields):
        reasons = "; ".join(f"{kind!r}, which {needs} needs" for kind, needs in sums.items())
        raise Unfit(
            f"{site_file.policy} does not let leave {reasons}, so the run would pause before its first round: add it to "
            "leaving.fields after "
            "review, or decline the study" + (" (a range is of single persons)" if "range" in sums else "")
        )
    if built is not None:  # except for what earlier checks cover
        request = Request(
            built.hash, examples=0, clip=built.clip, noise=built.noise, whole=built.whole, secure=hides
        )
        decision = Policy(site_policy.site, tasks=Tasks("first-use"), leaving=site_policy.leaving).allows(
            request, datetime.now(UTC)
        )
        if not decision.allowed:
            raise Unfit(
                f"{decision.reason}, and {site_file.study} does not say that it does so: decline it, or have it changed"
            )
    open_now = (
        "open now"
        if site_policy.hours.open(datetime.now(UTC))
        else f"closed now, open at {', '.join(site_policy.hours.windows)}"
    )
    if steps and not site_policy.minimum.cell:
        open_now += f", sums of columns of however few examples leave: set minimum.cell, such as {SAFE.cell}"
    if site_policy.leaving.delta is not None:
        ledger = Ledger(site_file.folder, site_file.account)
        try:
            ledger.check()
        except NoAccount as error:
            raise Unfit(str(error)) from None
        open_now += (
            f", an epsilon of {epsilon(ledger.privacy_loss, site_policy.leaving.delta):.3g} told so far"
        )
    return f"{site_file.policy}, {open_now}"


def study(site_file: SiteFile, settings: Settings) -> str:
    """Checks that the study here is the one of the run."""
    if site_file.study is None:
        raise Skipped("the site's file names no study, so the coordinator's is handed over, which is code")
    built, expected = build(site_file.study, site_file.arguments), settings.expected
    here, known = code(built), expected.code
    odd = [name for name in {**known, **here} if known.get(name) != here.get(name)] if known else []
    if expected.study and built.hash != expected.study:
        why = (
            f"the files of {listed(odd)} differ: install the same version"
            if odd
            else "install the same version, with the same arguments"
        )
        raise Unfit(f"{site_file.study} here is {built.hash}, and the run is of {expected.study}; {why}")
    if odd:
        raise Unfit(
            f"the files of {listed(odd)} are others than those that the study was made with: install the same version"
        )
    if site_file.folder is not None and (
        odd := reviewed.changed(site_file.folder, site_file.study, built.hash)
    ):
        raise Unfit(
            f"the files of {listed(odd)} have changed since this site took part: review them, and remove {site_file.folder / reviewed.NAME}"
        )
    if built.round.uplink.hides and (
        site_file.roster is None or site_file.name not in Roster.read(site_file.roster).keys
    ):
        raise Unfit(
            f"{site_file.study} has secure aggregation, and the site's file names no roster with the keys of all sites, its own "
            "among them: "
            'exchange the lines of `fedjax-core keys show` with the other sites, and set roster = "roster.toml"'
        )
    return f"{site_file.study}, {built.hash}, made of the files of {listed([name for name in here])}"
