"""A policy says no for every reason that it has, by name, and is read from its file strictly."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from fedjax_core.sites.policy import Caps, Leaving, Minimum, Policy, Request, Tasks, pin, pinned
from fedjax_core.sites.policy.hours import Hours

FULL = """
site = "charite"
paused = false
max_bad_share = 0.01

[tasks]
mode = "list"
allowed = ["3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a", "77aa77aa77aa77aa77aa77aa77aa77aa"]

[minimum]
examples = 50
per_class = 5

[leaving]
fields = ["weight", "examples", "data", "loss"]
max_norm = 10
clip = 1.0
noise = 0.8
by = "study"

[hours]
zone = "Europe/Berlin"
windows = ["Mon-Fri 19:00-06:00", "Sat,Sun 00:00-24:00"]

[caps]
cpus = 4
memory_gb = 16.0
seconds_per_day = 60
"""
POLICY = Policy(
    site="charite",
    max_bad_share=0.01,
    tasks=Tasks(allowed=("3f9a" * 8, "77aa" * 8)),
    minimum=Minimum(50, 5),
    leaving=Leaving(("weight", "examples", "data", "loss"), max_norm=10.0, clip=1.0, noise=0.8, by="study"),
    hours=Hours("Europe/Berlin", ("Mon-Fri 19:00-06:00", "Sat,Sun 00:00-24:00")),
    caps=Caps(cpus=4, memory_gb=16.0, seconds_per_day=60.0),
)
NIGHT = datetime(2026, 1, 5, 22, tzinfo=UTC)  # a Monday, 23:00 in Berlin
NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
GOOD = Request(
    "3f9a" * 8, 303, {0: 100, 1: 203}, ("weight", "loss"), clip=0.5, noise=1.0, bad=0.01, seconds_today=59.0
)


def test_a_policy_comes_from_its_file(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(FULL)
    assert Policy.read(path) == POLICY


def test_a_request_within_the_policy_is_allowed():
    assert POLICY.allows(GOOD, NIGHT) == (True, "allowed", "", None)


@pytest.mark.parametrize(
    ("policy", "request_", "now", "code", "said"),
    [
        ({"withdrawn": True}, {}, NIGHT, "withdrawn", "charite has withdrawn from the federation (withdrawn)"),
        ({"paused": True}, {}, NIGHT, "paused", "charite is paused by its staff (paused)"),
        ({}, {}, NOON, "hours", "charite takes part only at Mon-Fri 19:00-06:00, Sat,Sun 00:00-24:00 Europe/Berlin (hours.windows)"),
        ({}, {"task": "beef"}, NIGHT, "task", "charite has not allowed the task 'beef': its staff adds the hash after review"),
        ({}, {"examples": 49}, NIGHT, "examples", "charite has fewer than the 50 examples that its policy asks for (minimum.examples)"),
        ({}, {"per_class": {0: 299, 1: 4}}, NIGHT, "per-class", "charite has fewer than the 5 examples of each class that its policy"),
        ({"minimum": Minimum(per_class=5, classes=3)}, {}, NIGHT, "per-class", "charite has fewer than the 5 examples of each class"),
        ({}, {"per_class": None}, NIGHT, "per-class", "charite has fewer than the 5 examples of each class"),
        ({"minimum": Minimum(department=5)}, {"department": 4}, NIGHT, "department", "charite has a department with fewer than the 5"),
        ({}, {"fields": ("weight", "ages")}, NIGHT, "field", "charite does not let 'ages' leave (leaving.fields)"),
        ({}, {"clip": 1.5}, NIGHT, "clip", "charite asks for updates clipped to 1 or less: add fc.uplink.clip(1) (leaving.clip)"),
        ({}, {"clip": None}, NIGHT, "clip", "charite asks for updates clipped to 1 or less"),
        ({}, {"clip": -1.0}, NIGHT, "clip", "charite asks for updates clipped to 1 or less"),
        ({}, {"clip": float("nan")}, NIGHT, "clip", "charite asks for updates clipped to 1 or less"),
        ({}, {"noise": 0.7}, NIGHT, "noise", "charite asks for noise of at least 0.8 times the clip (leaving.noise)"),
        ({}, {"noise": None}, NIGHT, "noise", "charite asks for noise of at least 0.8"),
        ({"leaving": Leaving(GOOD.fields, secure=True)}, {}, NIGHT, "secure", "charite lets updates leave under masks alone"),
        ({"leaving": Leaving(("weight", "loss"), clip=1.0)}, {"whole": True}, NIGHT, "whole", "charite clips what leaves by itself"),
        ({}, {"seconds_today": 60.0}, NIGHT, "caps", "charite has computed the 60 s that it gives a day, and goes on tomorrow"),
        ({}, {"bad": 0.02}, NIGHT, "bad-records", "charite has more bad records than the share of 0.01 that it skips (max_bad_share)"),
    ],
)  # fmt: skip
def test_no(policy, request_, now, code, said):
    decision = replace(POLICY, **policy).allows(GOOD._replace(**request_), now)
    assert not decision.allowed and decision.code == code and decision.reason.startswith(said)
    assert "49" not in decision.reason and "299" not in decision.reason and decision.pin is None


def test_a_site_that_adds_the_noise_itself_asks_nothing_of_the_study():
    own = replace(POLICY, leaving=Leaving(("weight", "loss"), clip=1.0))
    assert own.allows(GOOD._replace(clip=None, noise=None), NIGHT).allowed


def test_nothing_is_allowed_that_nobody_named():
    assert Policy(site="charite").allows(Request("3f9a", 303), NOON).code == "task"


def test_the_first_task_is_pinned_and_others_refused(tmp_path):
    policy, path = Policy(site="charite", tasks=Tasks("first-use", ("77aa",))), tmp_path / "pinned"
    assert pinned(path) is None
    decision = policy.allows(Request("3f9a", 303), NOON, pinned(path))
    assert decision.allowed and decision.pin == "3f9a"
    pin(path, decision.pin)
    assert policy.allows(Request("3f9a", 303), NOON, pinned(path)) == (True, "allowed", "", None)
    assert policy.allows(Request("77aa", 303), NOON, pinned(path)).allowed  # by name
    refused = policy.allows(Request("beef", 303), NOON, pinned(path))
    assert refused.code == "task" and "has pinned another task than 'beef'" in refused.reason
    with pytest.raises(FileExistsError, match="pins a task already; remove the file"):
        pin(path, "beef")
    assert pinned(path) == "3f9a"


@pytest.mark.parametrize(
    ("fields", "norm", "code"),
    [
        (("weight",), 10.0, "allowed"),
        (("weight", "ages"), 1.0, "field"),
        ((), 10.1, "norm"),
        ((), float("nan"), "norm"),
        ((), float("inf"), "norm"),
    ],
)
def test_what_may_leave(fields, norm, code):
    decision = POLICY.may_leave(fields, norm)
    assert (decision.allowed, decision.code) == (code == "allowed", code)


@pytest.mark.parametrize(
    ("window", "open_", "shut"),
    [
        ("19:00-06:00", ["05 19:00", "05 23:59", "06 00:00", "06 05:59"], ["05 06:00", "05 18:59"]),
        ("Mon 19:00-06:00", ["05 19:00", "06 05:59"], ["05 05:59", "06 06:00", "06 19:00"]),
        ("Sun 23:00-01:00", ["11 23:00", "05 00:59", "12 00:30"], ["11 22:59", "12 01:00"]),
        ("Sat,Mon 00:00-24:00", ["10 00:00", "10 23:59", "05 12:00"], ["11 00:00", "09 23:59"]),
        ("Fri-Mon 08:00-09:00", ["09 08:00", "12 08:59"], ["06 08:30", "08 08:30"]),
        ("Mon 08:00-08:00", ["05 08:00", "06 07:59"], ["05 07:59", "06 08:00"]),
    ],
)
def test_windows(window, open_, shut):
    hours = Hours("UTC", (window,))
    for times, expected in ((open_, True), (shut, False)):
        for time in times:
            assert hours.open(datetime.strptime(f"2026-01-{time} +0000", "%Y-%m-%d %H:%M %z")) == expected, (
                time
            )


def test_hours_are_those_of_the_site():
    hours = Hours("Europe/Berlin", ("12:00-13:00",))
    # summer time
    assert hours.open(datetime(2026, 1, 5, 11, 30, tzinfo=UTC)) and hours.open(
        datetime(2026, 7, 6, 10, 30, tzinfo=UTC)
    )
    assert hours.open(datetime(2026, 1, 5, 16, 30, tzinfo=timezone(timedelta(hours=5)))) and not hours.open(
        NOON
    )
    assert Hours().open(NOON)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'site' is missing from the policy"),
        ('site = "a b"', "site 'a b' is not a name"),
        ('site = "a"\nmin_examples = 3', "'min_examples' is not a setting of a policy; there are site, paused"),
        ('site = "a"\n[minimum]\nexample = 3', "'minimum.example' is not a setting of a policy; there are minimum.examples"),
        ('site = "a"\nminimum = 3', "minimum is 3; it should be a table"),
        ('site = "a"\npaused = 1', "paused is 1; it should be true or false"),
        ('site = "a"\n[minimum]\nexamples = 3.0', "minimum.examples is 3.0; it should be a whole number, 0 or more"),
        ('site = "a"\n[minimum]\nexamples = true', "minimum.examples is True; it should be a whole number"),
        ('site = "a"\n[minimum]\nexamples = -1', "minimum.examples is -1; it should be a whole number"),
        ('site = "a"\n[leaving]\nclip = "1"', "leaving.clip is '1'; it should be a number, 0 or more"),
        ('site = "a"\n[leaving]\nclip = nan', "leaving.clip is nan; it should be a number"),
        ('site = "a"\n[leaving]\nclip = -1.0', "leaving.clip is -1.0; it should be a number"),
        ('site = "a"\n[leaving]\nfields = "loss"', "leaving.fields is 'loss'; it should be a list of texts"),
        ('site = "a"\n[tasks]\nmode = "any"', "tasks.mode is 'any'; it should be one of list, first-use"),
        ('site = "a"\n[hours]\nzone = "Mars/Olympus"', "zone 'Mars/Olympus' is not known here"),
        ('site = "a"\n[hours]\nzone = "../etc"', "zone '../etc' is not a time zone"),
        ('site = "a"\n[hours]\nwindows = ["nights"]', "window 'nights' should read like 'Mon-Fri 19:00-06:00'"),
        ('site = "a"\n[hours]\nwindows = ["Mon 25:00-26:00"]', "window 'Mon 25:00-26:00' should read like"),
        ('site = "a"\n[hours]\nwindows = ["Mo 19:00-20:00"]', "window 'Mo 19:00-20:00' names a day other than Mon, Tue"),
        ('site = "a"\nmax_bad_share = 1.0', "max_bad_share is 1, and should be a share below 1"),
        ('site = "a"\n[caps]\ncpus = 0', "caps.cpus is 0, and work needs at least 1"),
        ('site = "a"\n[caps]\ngpu_share = 1.5', "caps.gpu_share is 1.5, and should be a share of the GPU's memory"),
        ('site = "a"\n[leaving]\nepsilon = 3', "leaving.epsilon is 3, and means nothing without leaving.delta: set one, such as 1e-6"),
        ('site = "a"\n[leaving]\nclip = 0', "leaving.clip is 0, and should be the l2 norm to which the site clips, above 0"),
        ('site = "a"\n[leaving]\nnoise = 1', "leaving.clip is not set, and should be the l2 norm to which the site clips, above 0"),
        ('site = "a"\n[leaving]\nclip = 1\nnoise = 1', "leaving.noise is noise that the site adds, of which it keeps an account"),
        ('site = "a"\n[leaving]\nby = "both"', "leaving.by is 'both'; it should be one of site, study"),
        ('site = "a"\n[leaving]\ndelta = 1e-6\nclip = 1', "leaving.delta has an epsilon kept, which comes of a clip"),
        ('site = "a"\n[leaving]\ndelta = 1e-6\nclip = 1\nnoise = 0', "leaving.delta has an epsilon kept, which comes of a clip"),
        ('site = "a"\n[leaving]\ndelta = 1\nclip = 1\nnoise = 1', "leaving.delta is 1, and should be a probability"),
        ('site = "a"\n[leaving]\ndelta = 1e-6\nclip = 1\nnoise = 1\nfields = ["loss"]', "leaving.fields names 'loss', which leaves"),
        ("site = ", "Invalid value"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_in_order_is_refused_by_name(tmp_path, text, said):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        Policy.read(path)
    assert str(error.value).startswith(f"{path}: {said}")
