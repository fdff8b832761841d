"""Makes requests that get further than the first thing that is wrong with them.

Left alone, nearly every request has every parameter, each of them nonsense, and is refused for the
first. Here most of them have few, and half of the filters have an operand that some type reads.
What is done depends on the request alone, so that a seed gives the same requests again.
"""

import re
import zlib

import schemathesis

OPERANDS = [
    "1", "0", "-7", "2.5", "a", "Ada", "true", "null", "", "*a*", "2026-01-01", "infinity", "NaN",
    "2026-01-01T00:00:00Z", "1 day", "{1,2}", "{a,\"b,c\"}", "{}", "(1,2)", "(\"a\",b)", "[1,5)",
    "[2026-01-01,2026-02-01)", "{\"a\":[1]}", "[1]", "127.0.0.1/8", "\\x00ff", "B'101'", "1:*",
    "00000000-0000-4000-8000-00000000000a", "9223372036854775808", "1e400", "glad", "'", "\\",
]

SELECTS = [
    "*", "id", "*,people(*)", "id,x:id::text", "id::int,id::nothing", "j->a->0->>b,b->>x", "two->a",
    "numbers[0]", "*,boss:people!people_boss_fkey(name,people(*))", "...people(name)", "count()",
    "person,places(*,visits(*))", "*,visits!inner(days)", "name,id.max()", "", "*,*", "a(b(c(d(e))))",
]

ORDERS = ["id", "id.desc.nullslast,name", "b->x.asc", "people(name).desc", "name.down", "id,id,id", ""]

TREES = [
    "(id.eq.1,name.eq.a)", "(id.in.(1,2),not.and(name.like.*a*,id.gt.0))", "(not.or(id.is.null))",
    "(b->>a.eq.1,numbers.cs.{1})", "((((id.eq.1))))", "(id.eq.\"1,2\")", "()", "(people.not.is.null)",
]

NAMED = {"select": SELECTS, "order": ORDERS, "or": TREES, "and": TREES,
         "columns": ["id", "id,name", "\"name\"", "none"], "on_conflict": ["id", "name", "id,name"]}

OPERATOR = re.compile(r"^((?:not\.)*[a-z]+(?:\([^()]*\))?\.)")


def chosen(text, of):
    """A number below `of` that depends on the text alone."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) % of


@schemathesis.hook
def map_query(context, query):
    if not query:
        return query
    whole = repr(sorted(query.items(), key=repr))
    if chosen(whole, 8) == 0:
        return query
    required = {
        parameter.name
        for parameter in context.operation.query
        if parameter.is_required
    } if context.operation is not None else set()
    made = {}
    for name, value in query.items():
        if name not in required and chosen(name + whole, 100) >= 300 // (len(query) + 2):
            continue
        if isinstance(value, str) and chosen("value" + name + whole, 2):
            operator = OPERATOR.match(value)
            if name in NAMED:
                value = NAMED[name][chosen(whole + name, len(NAMED[name]))]
            elif operator:
                value = operator.group(1) + OPERANDS[chosen(whole + name, len(OPERANDS))]
        made[name] = value
    return made
