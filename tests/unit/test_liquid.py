"""Liquid templates in mappings: tags, filters, what is switched off, what a template may not grow to."""

from typing import Any

import pytest

from pipeline.language.mapping.liquid import DISABLED_FILTERS, DISABLED_TAGS, LiquidError, compile_liquid
from pipeline.language.mapping.paths import UNDEFINED

EVENT: dict[str, Any] = {
    "s": "Hi there",
    "n": None,
    "f": False,
    "t": True,
    "i": 7,
    "d": 2.5,
    "whole": 4.0,
    "l": ["b", "a"],
    "items": [{"sku": "x", "ok": True, "price": 2}, {"sku": "y", "ok": False, "price": 0.5}],
    "o": {"a": {"b": 1}, "a b": 2},
    "at": "2026-11-21T09:05:07.120Z",
    "html": "<p>a &amp; <script>x<y</script><!-- c -->b</p> 1 < 2",
    "key": "sku",
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("", ""),
        ("plain }} {", "plain }} {"),
        ("{{ s }}|{{n}}|{{f}}|{{i}}|{{d}}|{{whole}}|{{q}}", "Hi there||false|7|2.5|4|"),
        ("{{ l }}{{ o.a }}", 'ba{"b":1}'),
        ("{{ o.a.b }}{{ o['a b'] }}{{ items[1].sku }}{{ items[0][key] }}{{ l[-1] }}{{ l[5] }}", "12yxa"),
        ("{{ l.size }}{{ l.first }}{{ l.last }}{{ s.size }}{{ o.size }}", "2ba82"),
        ("{{ 'a' }}{{ \"b\" }}{{ -1.5 }}{{ true }}{{ nil }}", "ab-1.5true"),
        ("a {{- s -}} b", "aHi thereb"),
        ("a {%- if t -%} b {%- endif -%} c", "abc"),
        # tags
        ("{% if i > 5 %}y{% else %}n{% endif %}", "y"),
        ("{% if i > 9 %}1{% elsif i == 7 %}2{% else %}3{% endif %}", "2"),
        ("{% unless f %}y{% else %}n{% endunless %}", "y"),
        ("{% if s contains 'there' and l contains 'a' %}y{% endif %}", "y"),
        ("{% if t or t and f %}y{% endif %}", "y"),
        ("{% if f and f or t %}y{% else %}n{% endif %}", "n"),
        ("{% if q == empty %}y{% else %}n{% endif %}{% if q == blank %}y{% endif %}", "ny"),
        ("{% if i != 7 %}y{% elsif i <> 8 %}n{% endif %}", "n"),
        ("{% if t == 1 %}y{% else %}n{% endif %}", "n"),
        ("{% if s > 5 %}y{% else %}n{% endif %}", "n"),
        ("{% assign x = s | size | times: 2 %}{{ x }}", "16"),
        ("{% capture x %}<{{ i }}>{% endcapture %}{{ x }}{{ x }}", "<7><7>"),
        ("a{% comment %}{{ | }}{% if %}{% endcomment %}b{% # c %}", "ab"),
        ("{% raw %}{{ x }}{% endraw %}", "{{ x }}"),
        ("{% increment c %}{% increment c %}{{ c }}{% decrement c %}", "0121"),
        ("{% echo s | downcase %}", "hi there"),
        ("{% liquid\n assign x = 1\n if x == 1\n echo 'one'\n endif %}", "one"),
        # filters
        ("{{ s | append: '!' | prepend: '>' | upcase }}", ">HI THERE!"),
        ("{{ 'hELLO' | capitalize }}{{ ' a ' | strip }}|{{ ' a ' | lstrip }}|{{ ' a ' | rstrip }}", "Helloa|a | a"),
        ("{{ i | plus: 1 }} {{ i | minus: '2' }} {{ i | times: 1.5 }} {{ i | divided_by: 2 }}", "8 5 10.5 3.5"),
        ("{{ i | modulo: 4 }} {{ -7 | modulo: 4 }} {{ -7 | abs }}", "3 -3 7"),
        ("{{ 2.5 | round }} {{ 2.345 | round: 2 }} {{ 2.1 | ceil }} {{ 2.9 | floor }}", "3 2.35 3 2"),
        ("{{ i | at_least: 9 }}{{ i | at_most: 3 }}{{ 'x' | plus: 1 }}", "931"),
        ("{{ q | default: 'd' }}{{ f | default: 'd' }}{{ f | default: 'd', allow_false: true }}", "ddfalse"),
        ("{{ s | replace: 'e', 'E' }}{{ s | replace_first: 'e', '' }}{{ s | replace_last: 'e', '' }}", "Hi thErEHi threHi ther"),
        ("{{ s | remove: 'e' }}{{ s | remove_first: 'e' }}{{ s | remove_last: 'e' }}", "Hi thrHi threHi ther"),
        ("{{ 'a,b,,' | split: ',' | join: '-' }}{{ 'ab' | split: '' | join }}", "a-ba b"),
        ("{{ l | first }}{{ l | last }}{{ l | size }}{{ s | size }}{{ l | push: 'c' | join: '' }}", "ba28bac"),
        ("{{ l | pop }}{{ l | shift }}{{ l | unshift: 'z' }}", "bazba"),
        ("{{ s | slice: 0, 2 }}{{ s | slice: -2 }}{{ l | slice: 1 }}", "Hira"),
        ("{{ items | where: 'ok' | size }}{{ items | where: 'sku', 'y' | size }}{{ items | sum: 'price' }}", "112.5"),
        ("{{ s | truncate: 5 }}|{{ s | truncate: 5, '' }}|{{ s | truncatewords: 1 }}", "Hi...|Hi th|Hi..."),
        ("{{ '<a href=\"x\">' | escape }}{{ '&lt;<' | escape_once }}", "&lt;a href=&#34;x&#34;&gt;&lt;&lt;"),
        ("{{ html | strip_html }}", "a &amp; b 1 < 2"),
        ("{{ 'a b&ä' | url_encode }} {{ 'a+b%26' | url_decode }}", "a+b%26%C3%A4 a b&"),
        ("{{ 'hé' | base64_encode }} {{ 'aMOp' | base64_decode }}", "aMOp hé"),
        ("{{ o | json }}{{ s | json }}", '{"a":{"b":1},"a b":2}"Hi there"'),
        ("{{ 'Ä Bc-d' | slugify }} {{ ' a  b ' | normalize_whitespace }}{{ 'a b' | number_of_words }}", "bc-d  a b 2"),
        ("{{ at | date: '%Y-%m-%d %H:%M:%S.%L %-d/%-m %b %e %a %p %l' }}", "2026-11-21 09:05:07.120 21/11 Nov 21 Sat AM  9"),
        ("{{ 0 | date: '%F %T %z %s %j %A %B' }}", "1970-01-01 00:00:00 +0000 0 001 Thursday January"),
        ("{{ '2026-01-02T01:00:00+02:00' | date: '%d %H' }}{{ 'now' | date: '%Y' }}", "01 23now"),
        ("{{ at | date_to_xmlschema }} {{ at | date_to_string }}", "2026-11-21T09:05:07+00:00 21 Nov 2026"),
    ],
)  # fmt: skip
def test_a_template_renders(template: str, expected: str) -> None:
    assert compile_liquid(template)(EVENT) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ i | divided_by: 0 }}",
        "{{ i | modulo: 0 }}",
        "{{ 'é!' | base64_decode }}",
        "{% assign x = s %}" + "{% assign x = x | append: x %}" * 20 + "{{ x }}",
        "{% assign x = s %}" + "{% assign x = x | replace: 'e', x %}" * 20 + "{{ x }}",
        "{% assign x = 9 %}" + "{% assign x = x | times: x %}" * 20 + "{{ x }}",
        "{% assign x = s %}" + "{% capture x %}{{x}}{{x}}{% endcapture %}" * 20,
    ],
)
def test_what_cannot_be_rendered_is_undefined(template: str) -> None:
    assert compile_liquid(template)(EVENT) is UNDEFINED


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{{ s | map: 'x' }}", "the filter map is switched off, as in the reference; leave it out"),
        ("{% for x in l %}{% endfor %}", "the tag for is switched off, as in the reference; leave it out"),
        ("{{ s | upcse }}", "unknown filter upcse; there are "),
        ("{% iff %}", "unknown tag iff; there are "),
        ("{{ s | append }}", "append takes 1 to 1 values, not 0"),
        ("{{ s s }}", "expected the end, found s"),
        ("{{ s | }}", "expected a name, found the end"),
        ("{{ $.s }}", "unexpected $ in $.s; correct it"),
        ("{% if t %}", "something has no end; close it with endif"),
        ("{% endif %}", "endif ends nothing; leave it out"),
        ("{% if t %}{% endunless %}", "endunless ends nothing here; close with endif"),
        ("{% comment %}", "comment has no end; close it with endcomment"),
        ("{% raw %}", "raw has no end; close it with endraw"),
        ("{% assign x %}", "expected =, found the end"),
        ("x" * 1001, "a template has at most 1,000 characters; shorten it"),
        ("{% if t %}" * 30, "nested deeper than 20; write it flatter"),
    ],
)
def test_a_template_that_is_none_says_why(template: str, fault: str) -> None:
    with pytest.raises(LiquidError) as raised:
        compile_liquid(template)
    assert str(raised.value).startswith(fault)


@pytest.mark.parametrize("name", sorted(DISABLED_TAGS))
def test_tags_that_the_reference_switches_off_are_refused(name: str) -> None:
    with pytest.raises(LiquidError, match="switched off"):
        compile_liquid(f"{{% {name} x %}}")


@pytest.mark.parametrize("name", sorted(DISABLED_FILTERS))
def test_filters_that_the_reference_switches_off_are_refused(name: str) -> None:
    with pytest.raises(LiquidError, match="switched off"):
        compile_liquid(f"{{{{ l | {name} }}}}")
