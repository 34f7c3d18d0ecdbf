"""Topics are built and parsed exactly, both ways."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.agent.topics import OWN, SHARED, InvalidTopicError, Parsed, Route, Topics

TOPICS = Topics("d1", "c1")
LEVELS = st.text(st.characters(exclude_characters="/+#\0", exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(LEVELS, LEVELS, st.sampled_from(Route), LEVELS)
def test_what_was_built_parses_to_what_it_was_built_from(domain: str, channel: str, route: Route, who: str) -> None:
    topics = Topics(domain, channel)
    proplet = who if route.is_own else None
    assert topics.parse(topics.build(route, proplet)) == Parsed(route, proplet)


@given(st.text(max_size=80))
def test_any_other_text_is_none_of_our_topics_or_builds_back_to_itself(text: str) -> None:
    parsed = TOPICS.parse(text) or TOPICS.parse(f"{TOPICS.base}/{text}")
    if parsed is not None:
        assert TOPICS.build(parsed.route, parsed.proplet_id) in (text, f"{TOPICS.base}/{text}")


@pytest.mark.parametrize(
    "suffix",
    [
        "control/manager/start/x/y",
        "control/manager/starts",
        "xcontrol/manager/start",
        "control/manager/start/",
        "control/manager/",
        "control/proplet/results/p1",
        "",
    ],
)
def test_a_topic_that_only_resembles_a_route_is_not_it(suffix: str) -> None:
    assert TOPICS.parse(f"m/d1/c/c1/{suffix}") is None


@pytest.mark.parametrize("topic", ["m/d2/c/c1/control/manager/start", "m/d1/c/c2/control/manager/start", "m/d1/c/c1"])
def test_another_channels_topics_are_not_ours(topic: str) -> None:
    assert TOPICS.parse(topic) is None


@pytest.mark.parametrize("bad", ["", "a/b", "a+", "#", "a\0b", "x" * 257, "\ud800"])
def test_a_name_that_cannot_be_a_topic_level_is_refused_by_name(bad: str) -> None:
    with pytest.raises(InvalidTopicError, match="domain"):
        Topics(bad, "c1")
    with pytest.raises(InvalidTopicError, match="proplet id"):
        TOPICS.build(Route.OWN_START, bad)


def test_a_shared_topic_takes_no_proplet() -> None:
    with pytest.raises(InvalidTopicError, match="names none"):
        TOPICS.build(Route.START, "p1")


def test_every_own_topic_is_a_shared_one_with_a_proplet_behind_it() -> None:
    for shared, own in OWN.items():
        assert own.value == shared.value + "/{}"
        assert SHARED[own] is shared


def test_the_topic_of_a_round_update_has_no_base() -> None:
    assert TOPICS.round_update("r1", "p1") == "fl/rounds/r1/updates/p1"
