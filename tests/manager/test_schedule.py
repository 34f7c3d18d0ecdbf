"""When cron's fields are due, in which time zone, and what is no schedule."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.manager import rules, schedule
from proplet.manager.model import Meta, Task, TaskSpec
from proplet.manager.schedule import ScheduleError, parse


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("expression", "now", "expected"),
    [
        ("*/5 * * * *", "2026-03-01 12:01", "2026-03-01 12:05"),
        ("0 0 * * MON-FRI", "2026-03-06 12:00", "2026-03-09 00:00"),
        ("0 0 29 2 *", "2026-03-01 12:01", "2028-02-29 00:00"),
        ("0 0 1 * SUN", "2026-03-02 00:00", "2026-03-08 00:00"),
        ("30 4 ? * ?", "2026-03-01 04:30", "2026-03-02 04:30"),
        ("0 12 1,15 JAN *", "2026-01-15 12:00", "2027-01-01 12:00"),
    ],
)
def test_the_next_time_is_the_first_one_after_now(expression: str, now: str, expected: str) -> None:
    assert parse(expression).after(at(now)) == at(expected)
    assert parse(expression).latest(at(expected)) == at(expected)
    assert parse(expression).names(at(expected))
    assert not parse(expression).names(at(expected) + 60)


def test_a_time_zone_can_be_given_in_front_or_beside() -> None:
    noon = at("2026-07-01 12:00", "Europe/Paris")
    for given_so in (
        parse("TZ=Europe/Paris 0 12 * * *"),
        parse("CRON_TZ=Europe/Paris 0 12 * * *"),
        parse("0 12 * * *", "Europe/Paris"),
        parse("TZ=Europe/Paris 0 12 * * *", "Europe/Paris"),
    ):
        assert given_so.after(noon - 3600) == noon


def test_a_time_that_summer_time_leaves_out_is_due_after_the_gap() -> None:
    daily = parse("30 2 * * *", "Europe/Berlin")
    assert daily.after(at("2026-03-28 12:00", "Europe/Berlin")) == at("2026-03-29 03:00", "Europe/Berlin")


def test_a_time_that_comes_twice_in_autumn_is_due_once() -> None:
    daily = parse("30 2 * * *", "Europe/Berlin")
    first = daily.after(at("2026-10-24 12:00", "Europe/Berlin"))
    assert first == at("2026-10-25 02:30", "Europe/Berlin")
    assert daily.after(first) == at("2026-10-26 02:30", "Europe/Berlin")
    assert daily.after(first + 3600 - 60) == at("2026-10-26 02:30", "Europe/Berlin")


@pytest.mark.parametrize(
    ("expression", "zone", "why"),
    [
        ("@daily", None, schedule.NO_CRON),
        ("* * * * * *", None, schedule.NO_CRON),
        ("60 * * * *", None, schedule.NO_CRON),
        ("* * * * MOO", None, schedule.NO_CRON),
        ("*/0 * * * *", None, schedule.NO_CRON),
        ("", None, schedule.NO_CRON),
        ("TZ=UTC", None, schedule.NO_CRON),
        ("0 0 30 2 *", None, schedule.NEVER),
        ("0 0 31 4,6 *", None, schedule.NEVER),
        ("0 0 * * *", "Mars/Olympus", schedule.NO_ZONE),
        ("0 0 * * *", "../../../etc/passwd", schedule.NO_ZONE),
        ("TZ=Europe 0 0 * * *", None, schedule.NO_ZONE),
        ("TZ=Europe/Paris 0 0 * * *", "UTC", schedule.TWO_ZONES),
    ],
)
def test_what_is_no_schedule_says_what_it_must_be(expression: str, zone: str | None, why: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        parse(expression, zone)
    assert str(refused.value) == why
    spec = TaskSpec(name="main", image_url="r.test/a:1", schedule=expression, timezone=zone)
    assert why in [problem.text for problem in rules.check(Task(Meta("a"), spec))]


def test_a_clock_beyond_the_calendar_has_no_next_time() -> None:
    assert parse("* * * * *").after(1e18) is None
    assert parse("* * * * *").latest(1e18) is None


FIELDS = st.tuples(
    st.sampled_from(["*", "*/7", "0", "15,45", "59"]),
    st.sampled_from(["*", "2", "*/6", "1-3", "23"]),
    st.sampled_from(["*", "1", "29", "?", "L", "*/10"]),
    st.sampled_from(["*", "2", "JAN-MAR", "*/3"]),
    st.sampled_from(["*", "0", "MON", "1-5", "SUN#1", "?"]),
)


@given(
    FIELDS, st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]), st.integers(0, 2**32)
)
def test_times_go_forward_and_looking_back_finds_the_same_one(fields: tuple[str, ...], zone: str, now: int) -> None:
    plan = parse(" ".join(fields), zone)
    following = plan.after(now)
    assert following is not None
    assert following > now
    latest = plan.latest(now)
    assert latest is None or latest <= now
    again = plan.latest(following)
    assert again is not None
    assert now < again <= following


@given(st.text(alphabet="0123456789*/,-?#LWTZ= MONJAabc", max_size=30), st.text(max_size=8))
def test_any_text_is_a_schedule_or_is_refused(expression: str, zone: str) -> None:
    try:
        plan = parse(expression, zone)
    except ScheduleError:
        return
    following = plan.after(0)
    assert following is None or following > 0
