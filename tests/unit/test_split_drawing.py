"""How the graph of a person looks as text, SVG and DOT, whatever its ids are called."""

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from rich.console import Console

from millrace.cli.identity_graph import MOST_IDS, dot, svg
from millrace.cli.identity_text import explanation_text, split_text, suspects_text

HOSTILE = ('<script>alert("x")</script>', "a&b", 'quo"te\\', "nul-free \x01 control", "línea\nnueva", "日本" * 40)
AT = "2026-11-21T09:00:00.000Z"


def cause(message: str, kind: str | None = "track") -> dict[str, Any]:
    return {"message_id": message, "type": kind, "source_id": "web", "config_version": 1}


def one_id(key: str, profile: str, apart: tuple[str, ...] = ()) -> dict[str, Any]:
    kind, _, value = key.partition(":")
    return {
        "id": key,
        "type": kind,
        "value": value,
        "added_at": AT,
        "cause": cause("m1", None),
        "first_profile": profile,
        "events": 3,
        "first_seen": AT,
        "last_seen": AT,
        "apart": list(apart),
    }


def link(a: str, b: str, count: int = 1) -> dict[str, Any]:
    return {"a": a, "b": b, "count": count, "first_at": AT, "last_at": AT, "cause": cause("m3")}


def profile(name: str, into: str | None = None) -> dict[str, Any]:
    return {"id": name, "created_at": AT, "message_id": "m1", "source_id": "web", "merged_into": into}


def document(**changed: Any) -> dict[str, Any]:
    merge = {"id": "mrg_1", "survivor": "use_1", "absorbed": "use_2", "at": AT, "cause": cause("m3"), "undone_by": None}
    return {
        "profile": "use_1",
        "collection": "users",
        "events": 12,
        "profiles": [profile("use_1"), profile("use_2", "use_1")],
        "ids": [one_id("user_id:u1", "use_1"), one_id("anonymous_id:a1", "use_1"), one_id("anonymous_id:a2", "use_2")],
        "links": [link("anonymous_id:a1", "user_id:u1"), link("anonymous_id:a2", "user_id:u1", 1_234)],
        "accounts": [],
        "merges": [merge],
        "moves": [],
        "splits": [],
        "refused": [],
        "rules": [],
    } | changed


def texts(picture: str) -> list[str]:
    return ["".join(one.itertext()) for one in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]


def printed(shown: Any) -> str:
    console = Console(width=200, highlight=False)
    with console.capture() as captured:
        console.print(shown)
    return captured.get()


def test_the_picture_shows_ids_profiles_and_the_event_that_merged_them():
    shown = texts(svg(document()))
    assert [one for one in ("u1", "a1", "a2") if not any(one in line for line in shown)] == []
    assert any("until 2026-11-21 09:00: track m3" in one for one in shown)
    assert any("1,234 times" in one for one in shown)
    assert any(one == "3 ids, 12 events, once 2 profiles · user_id, anonymous_id" for one in shown)


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_ids_stay_text(value):
    ids = [one_id(f"user_id:{value}", "use_1"), one_id("anonymous_id:a1", "use_1")]
    found = document(
        ids=ids, links=[link(f"user_id:{value}", "anonymous_id:a1")], accounts=[{"id": value, "account": value}]
    )
    tags = {one.tag.rpartition("}")[2] for one in ElementTree.fromstring(svg(found)).iter()}
    assert tags == {"svg", "title", "rect", "text", "path"}
    drawn = dot(found)
    assert drawn.splitlines()[-1] == "}"
    assert value.splitlines()[0][:20] in printed(explanation_text(found, None)).replace("\n", "") or "\x01" in value


def test_a_large_graph_is_drawn_in_part_and_says_so():
    many = [one_id(f"anonymous_id:d{number}", "use_1") for number in range(3 * MOST_IDS)]
    tying = one_id("anonymous_id:tying", "use_2")
    found = document(ids=[*many, tying], links=[link("anonymous_id:d359", "anonymous_id:tying")])
    shown = texts(svg(found))
    assert any(f"Shown are {MOST_IDS} of 361 ids and 1 of 1 links" in one for one in shown)
    assert any(one.endswith("tying") for one in shown)
    assert dot(found).count("since") == 361 + 2


def test_what_is_held_apart_and_refused_is_told():
    refusal = {
        "id": "anonymous_id:a9",
        "violation": "Identifiers kept apart",
        "count": 2,
        "first_at": AT,
        "last_at": AT,
    }
    split = {
        "id": "spl_1",
        "at": AT,
        "profile": "use_1",
        "other": "use_3",
        "merge": "mrg_2",
        "cut": [],
        "links": [["x", "y"]],
        "lifted_at": None,
    }
    found = document(
        ids=[one_id("user_id:u1", "use_1", apart=("spl_1:a",))],
        links=[],
        splits=[split],
        refused=[refusal | {"profile": name, "cause": cause("m9")} for name in ("use_1", "use_7")],
    )
    told = printed(explanation_text(found, 40))
    assert "kept apart by spl_1" in told
    assert "spl_1 2026-11-21 09:00:00, undid mrg_2" in told
    assert "anonymous_id:a9 Identifiers kept apart · 4 times to 2 profiles" in told
    drawn = texts(svg(found))
    assert any("kept apart" in one for one in drawn)
    assert any("4 times, to 1 other profile, first on track m9" in one for one in drawn)


def test_a_split_says_what_it_did_and_how_to_lift_it():
    part = {"id": "use_1", "ids": ["user_id:u1"], "events": 2, "traits": {"plan": "pro"}}
    done = {
        "split": "spl_1",
        "done": "unmerge",
        "dry_run": False,
        "before": [part],
        "after": [part, part | {"id": "use_2", "ids": ["anonymous_id:a2"]}],
        "links_cut": [["anonymous_id:a2", "user_id:u1"]],
        "links_restored": [],
        "merges_undone": ["mrg_1"],
        "merges_restored": [],
        "destinations_told": ["spl_1:unmerge:a", "spl_1:unmerge:b"],
    }
    told = printed(split_text(done))
    assert told.splitlines()[0] == "taken apart: spl_1"
    for line in (
        "link cut anonymous_id:a2 and user_id:u1",
        "merge undone mrg_1",
        "destinations are told by 2 identifies",
        "millrace identity remerge spl_1",
    ):
        assert line in told
    assert "nothing was changed" in printed(split_text(done | {"dry_run": True}))


def test_an_account_that_several_ids_belong_to_is_told_once():
    account = {"account": "group_id:g7"}
    told = printed(explanation_text(document(accounts=[account, account, {"account": "group_id:g8"}]), 40))
    assert "together with group_id:g7, group_id:g8\n" in told


def test_suspects_come_with_what_mends_them():
    one = {
        "kind": "shared_id",
        "subject": "anonymous_id:k",
        "score": 71,
        "says": "was refused to 5 profiles",
        "counts": {},
        "mend": ["millrace identity unmerge --cut a b"],
    }
    assert printed(suspects_text({"suspects": [one]})).splitlines() == [
        " 71 anonymous_id:k was refused to 5 profiles",
        "    millrace identity unmerge --cut a b",
    ]
    assert printed(suspects_text({"suspects": []})) == "nothing looks wrong\n"


def test_an_id_that_went_to_its_latest_owner_is_told_in_text_picture_and_dot():
    gone = {"id": "ios.push_token:k1", "left": "use_2", "joined": "use_9", "at": AT, "cause": cause("m7"),
            "mapped_at": AT, "mapped_by": "m2"}  # fmt: skip
    found = document(moves=[gone, gone | {"left": "use_9", "joined": "use_1"}])
    said = "ios.push_token:k1 went to use_9 on 2026-11-21 09:00, because of m7"
    assert [one for one in texts(svg(found)) if "went to" in one] == [said]
    assert [one.strip() for one in dot(found).splitlines() if "went to" in one] == [
        'left_0 [label="ios.push_token:k1\\nwent to use_9 on 2026-11-21 09:00", color="#66717f", style="rounded,dashed"];'
    ]
    assert printed(explanation_text(found, 10)).count("ios.push_token:k1 2026-11-21 09:00:00, because of track m7") == 2
