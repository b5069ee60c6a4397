"""The identity specification's hard cases, in its notation: u user_id, e email, a anonymous_id, p phone, i ios.id,
g ga_client_id, k ios.push_token, L loyalty_id. Events are separated by `;`, the ids of one event by `+`.
Profiles are written in the order they were created."""

import re

import pytest

from pipeline.graph import Graph
from pipeline.identity import DEFAULT
from pipeline.profile import message_key
from schemas.events import Event, ExternalId

TYPES = {
    "u": "user_id",
    "e": "email",
    "a": "anonymous_id",
    "p": "phone",
    "i": "ios.id",
    "g": "ga_client_id",
    "k": "ios.push_token",
    "L": "loyalty_id",
}

CASES = {
    "1 anonymous, then known: u1 and a1 meet": ("a1; u1+a1; a1", ["u1 a1"]),
    "2 second device: the later profile joins the earlier": ("u1+a1; a2; u1+a2", ["u1 a1 a2"]),
    "3 logout without reset: the cookie stays with its first owner": ("u1+a1; a1; u2+a1; a1", ["u1 a1", "u2"]),
    "4 logout with reset: a fresh cookie is a fresh person": ("u1+a1; a2; u2+a2", ["u1 a1", "u2 a2"]),
    "5 shared tablet, user ids: one owner": ("u1+i1; u2+i1; u3+i1", ["u1 i1", "u2", "u3"]),
    "6 shared tablet, emails only: over-merged": ("e1+i1; e2+i1; e3+i1", ["e1 e2 e3 i1"]),
    "8 same email, new user id: the email stays": ("u1+e1; u2+e1", ["u1 e1", "u2"]),
    "9 two emails, one user: both": ("u1+e1; u1+e2", ["u1 e1 e2"]),
    "10 sixth email: is a person of its own": (
        "u1+e1; u1+e2; u1+e3; u1+e4; u1+e5; u1+e6; e6",
        ["u1 e1 e2 e3 e4 e5", "e6"],
    ),
    "11 sixth email without a user id: the lower anonymous id gives way": (
        "e1+a1; e2+a1; e3+a1; e4+a1; e5+a1; e6+a1",
        ["e1 e2 e3 e4 e5 a1", "e6"],
    ),
    "12 recycled phone: stays with its first owner": ("u1+p1; u1+p2; u2+p1", ["u1 p1 p2", "u2"]),
    "13 recycled phone, no user id: over-merged": ("p1+a1; p1+a2", ["p1 a1 a2"]),
    "21 chain of three: two merges": ("a1; e1; p1; a1+e1; e1+p1", ["e1 a1 p1"]),
    "22 three at once: one event, two merges": ("a1; e1; u1; u1+e1+a1", ["u1 e1 a1"]),
    "23 partial merge of three: p1 stays": ("u1+a1; e1+a2; u2+p1; u1+e1+p1", ["u1 e1 a1 a2", "u2 p1"]),
    "24 foreign anonymous id: a1 stays": ("u1+e1; u2+a1; u1+e2+a1", ["u1 e1 e2", "u2 a1"]),
    "25 innocent id sacrificed: a9 goes first": ("u1; u2+e2; a9; u1+e2+a9", ["u1", "u2 e2", "a9"]),
    "26 crossed logins: nothing moves": ("u1+a1; u2+a2; u1+a2; u2+a1", ["u1 a1", "u2 a2"]),
    "27 order dependence: mirror of case 3": ("u2+a1; u1+a1", ["u2 a1", "u1"]),
    "28 attach race: first come": ("e1+a1; u1+e9; u2+e1; u1+e1", ["u2 e1 a1", "u1 e9"]),
    "29 demote, then bridge: no bridge": ("a1+e1; u1+a1; u2+e1; u2+a1+e5", ["u1 e1 a1", "u2 e5"]),
    "30 merge sum over the limit: no merge": (
        "u1+e1; u1+e2; u1+e3; a1+e4; a1+e5; a1+e6; u1+a1",
        ["u1 e1 e2 e3", "a1 e4 e5 e6"],
    ),
    "31 sixth device: is refused, alone and by a bridge": (
        "u1+a1; u1+a2; u1+a3; u1+a4; u1+a5; a6; u1+a6; a6+e1; u1+e1",
        ["u1 a1 a2 a3 a4 a5", "e1 a6"],
    ),
    "40 loyalty is the lowest: the second card is refused": (
        "L1+e1; L2+e1; L3+e1; L4+e1; L5+e1; L6+e1",
        ["e1 L1 L2 L3 L4 L5"],
    ),
    "44 cookie id survives a reset: misfiled": ("u1+a1+g1; u2+a2+g1; a3+g1", ["u1 a1 a3 g1", "u2 a2"]),
    "45 shared mailbox: first owner": ("u1+e1; u2+e1; e1", ["u1 e1", "u2"]),
    "46 push token moves: stays": ("u1+k1; u2+k1", ["u1 k1", "u2"]),
    "63 server only, then client: the anonymous profile survives": ("a1; u1; u1+a1; u1", ["u1 a1"]),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_hard_case(case: str):
    history, expected = CASES[case]
    graph = Graph()
    for number, event in enumerate(history.split(";")):
        ids = [ExternalId(TYPES[one[0]], one) for one in re.split(r"\+", event.strip())]
        at = number + 1
        accepted = Event("s", "track", f"m{number}", None, None, at, None, at, "server", None, None, b"{}")
        kept, refused = DEFAULT.arrange(ids)
        graph.apply(accepted, message_key("s", accepted.message_id), kept, None, DEFAULT, (), refused)

    assert members(graph) == [sorted(one.split()) for one in expected]
    assert sum(profile.events for profile in graph.profiles.values() if profile.merged_into is None) == number + 1


def members(graph: Graph) -> list[list[str]]:
    """The ids of each canonical profile, profiles in order of creation."""
    found: dict[str, list[str]] = {}
    for node in graph.nodes.values():
        assert node.profile is not None
        found.setdefault(graph.canonical(node.profile), []).append(node.key.split(":", 1)[1])
    return [sorted(found[one]) for one in sorted(found, key=lambda one: graph.profiles[one].created_at)]
