"""What was redeemed does not come out of an invocation, in whatever it is wrapped."""

from __future__ import annotations

import abc
import collections
import contextlib
import dataclasses
import gc
import itertools
import logging
import random
import re
import threading
import types
import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

import attrs
import msgspec
import pydantic
import pytest

from apex_creds.errors import (
    AccessDeniedError,
    ApexCredsError,
    AuditUnavailableError,
    OutputWithheldError,
    SecretLeakError,
)
from apex_creds.middleware import CredentialMiddleware, OnLeak, OnOpaque
from apex_creds.model import GenericSecret
from apex_creds.redaction.redactor import Redactor
from tests.support.slots import open_slots
from tests.support.spellings import SPELLINGS
from tests.support.worlds import BLOB, KEY, PASSWORD, REFRESH, TOKEN, World, world_in

pytestmark = pytest.mark.anyio
MARK = "[redacted:key]"


def forms(secret: str) -> set[str]:
    """Every spelling, without the ends that depend on what is beside it."""
    found = {make(secret) for make in SPELLINGS.values()}
    return {form.rstrip("=")[6:-6] for form in found}


def clean(value: object, secret: str = KEY) -> bool:
    text = f"{value!r} {value!s}"
    return not any(form in text for form in forms(secret))


async def pass_through(world: World, make, *names: str) -> object:
    """What is left of a value that a plugin makes of secrets."""

    async def plugin(credentials):
        secrets = []
        for name in names or ("key",):
            async with credentials[name].reveal() as secret:
                secrets.append(secret.expose_str())
        return make(*secrets)

    with world.nothing_left():
        return await world.call(plugin, needs=names or ("key",))


# -- spellings ---------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(
    ("name", "secret"), [("key", KEY), ("login", PASSWORD), ("token", TOKEN)]
)
async def test_every_spelling(world: World, name: str, secret: str, spelling: str) -> None:
    spelled = SPELLINGS[spelling](secret)
    mark = f"[redacted:{name}]"

    def make(real):
        assert real == secret
        return [f"<{spelled}>", f"<{spelled}>".encode(), {spelled: 1}]

    text, data, table = await pass_through(world, make, name)
    for found in (text, data.decode(), *table):
        assert mark in found
        assert clean(found, secret)
    assert [(e.credential, e.detail) for e in world.events("leak")] == [(name, "result")]


async def test_every_part(world: World) -> None:
    async def plugin(credentials):
        async with credentials["token"].reveal() as secret:
            assert secret.expose_str() == TOKEN
        async with credentials["blob"].reveal() as secret:
            data = secret.expose_bytes()
        async with credentials["login"].reveal(part="user") as secret:
            user = secret.expose_str()
        return [REFRESH, data, data.hex(), user]

    result = await world.call(plugin, needs=("token", "blob", "login"))
    assert result[:3] == ["[redacted:token]", b"[redacted:blob]", "[redacted:blob]"]
    assert result[3] == "alice", "a user's name is no secret"
    assert BLOB not in result[1]


async def test_only_what_was_redeemed_is_looked_for(world: World) -> None:
    async def plugin(credentials):
        async with credentials["key"].reveal():
            return [KEY, TOKEN]

    assert await world.call(plugin, needs=("key", "token")) == [MARK, TOKEN]
    assert [e.credential for e in world.events("leak")] == ["key"]


async def test_a_leak_names_what_leaked(world: World) -> None:
    result = await pass_through(world, lambda key, token: token + token, "key", "token")
    assert result == "[redacted:token]" * 2
    assert [e.credential for e in world.events("leak")] == ["token"]


async def test_an_inner_invocations_secret_is_no_business_of_the_outer(world: World) -> None:
    """But a handle that was passed on belongs to both."""

    async def inner(handle):
        async with handle.reveal() as secret:
            return {"inner": secret.expose_str()}

    async def outer(credentials):
        got = await world.call(inner, credentials["key"].attenuate(), plugin="inner", needs=())
        return [got, KEY]

    assert await world.call(outer) == [{"inner": MARK}, MARK]


# -- containers ----------------------------------------------------------------------------


class Pair(NamedTuple):
    left: object
    right: object


@dataclasses.dataclass
class Data:
    value: object
    other: int = 7


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    value: object


class Struct(msgspec.Struct, frozen=True):
    value: object


class Plain:
    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"Plain({self.value!r})"


class Slotted:
    __slots__ = ("__weakref__", "nothing", "value")

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"Slotted({self.value!r})"


class Both(Slotted):
    """In whose dictionary it is, and whose class says what it likes."""

    def __init__(self, value: object) -> None:
        super().__init__(None)
        self.other = value

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def __getattribute__(self, name: str) -> object:
        return "harmless" if name == "other" else object.__getattribute__(self, name)

    def __str__(self) -> str:
        return str(object.__getattribute__(self, "other"))

    def __copy__(self) -> object:
        raise AssertionError("a plugin's code was called")


class Model(pydantic.BaseModel, extra="allow", frozen=True):
    value: object
    _private: object = pydantic.PrivateAttr(None)

    def model_post_init(self, context: object) -> None:
        self._private = self.value


class Root(pydantic.RootModel[list[object]]):
    pass


@attrs.frozen
class Attrs:
    value: object


@attrs.define(slots=False)
class AttrsDict:
    value: object


class Registered(dict):
    pass


CONTAINERS: dict[str, Callable[[object], object]] = {
    "list": lambda v: [1, v, None],
    "tuple": lambda v: (v, 2),
    "named tuple": lambda v: Pair(3, v),
    "set": lambda v: {v, 1},
    "frozen set": lambda v: frozenset([v]),
    "deque": lambda v: collections.deque([v]),
    "dict": lambda v: {"a": v},
    "keys": lambda v: {v: "a"},
    "ordered": lambda v: collections.OrderedDict(a=v),
    "default": lambda v: collections.defaultdict(list, a=[v]),
    "own dict": lambda v: Registered(a=v),
    "read-only": lambda v: types.MappingProxyType({"a": v}),
    "data class": Data,
    "frozen data class": Frozen,
    "struct": Struct,
    "plain class": lambda v: [Plain(v)],
    "slots": lambda v: [Slotted(v)],
    "slots and dictionary": Both,
    "pydantic model": lambda v: Model(value=v, extra=[v]),
    "pydantic root model": lambda v: Root([v]),
    "attrs": Attrs,
    "attrs with a dictionary": AttrsDict,
    "namespace": lambda v: types.SimpleNamespace(a=v),
    "nested": lambda v: {"a": [Data(Pair({"b": (v,)}, 1))]},
    "exception": ValueError,
    "list of exceptions": lambda v: [KeyError(v), None],
}


@pytest.mark.parametrize("kind", CONTAINERS)
async def test_every_container(world: World, kind: str) -> None:
    original: list[object] = []

    def make(secret):
        original.append(CONTAINERS[kind](secret))
        return original[0]

    result = await pass_through(world, make)
    assert clean(result)
    assert "redacted:key" in str(result)
    if kind != "read-only":
        assert type(result) is type(original[0])
    if "exception" not in kind:
        assert not clean(original[0]), "what the plugin has is not altered"


@pytest.mark.parametrize("kind", CONTAINERS)
async def test_what_has_no_secret_is_the_same_object(world: World, kind: str) -> None:
    made = CONTAINERS[kind]("harmless")
    assert await pass_through(world, lambda secret: made) is made


@pytest.mark.parametrize("way", OnOpaque)
async def test_what_can_not_be_searched_is_passed_or_withheld_and_audited(
    world: World, way: OnOpaque
) -> None:
    world.middleware = CredentialMiddleware(world.vault, on_opaque=way, harden=False)
    shown = [1, 1.5, None, "text", Plain(datetime.now(UTC)), threading.Lock(), way, int]
    assert await pass_through(world, lambda secret: shown) is shown
    assert not world.events("unsearched")
    for hidden in (lambda: KEY, zlib.compressobj(), re.compile(KEY), iter([KEY])):
        if way is OnOpaque.PASS:
            result = await pass_through(world, lambda secret, hidden=hidden: [hidden, hidden])
            assert result == [hidden, hidden]
        else:
            with pytest.raises(OutputWithheldError):
                await pass_through(world, lambda secret, hidden=hidden: [hidden])
        event = world.events("unsearched")[-1]
        assert event.detail == f"{type(hidden).__module__}.{type(hidden).__qualname__}"
        assert event.outcome == ("passed" if way is OnOpaque.PASS else "withheld")
    assert len(world.events("unsearched")) == 4


async def test_an_object_with_a_secret_that_can_not_be_copied_is_left_out(world: World) -> None:
    class Stubborn(Plain, metaclass=abc.ABCMeta):
        pass

    made = Stubborn(KEY)
    Stubborn.__abstractmethods__ = frozenset({"anything"})
    result = await pass_through(world, lambda secret: [made])
    assert result == ["[redacted: an object that had a secret in it, and can't be copied]"]


@pytest.mark.parametrize("where", ["result", "log", "exception"])
async def test_what_does_something_when_it_is_collected_is_not_copied(
    world: World, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    ended = []

    class Transport:
        def __init__(self, text: str) -> None:
            self.text = text

        def __del__(self) -> None:
            ended.append(self)

    made: list[Transport] = []

    async def plugin(credentials):
        async with credentials["key"].reveal() as secret:
            made.append(Transport(secret.expose_str()))
        made[0].peer = made  # refers back to itself
        if where == "log":
            logging.getLogger("plugin").error("%r", made)
        elif where == "exception":
            raise ValueError(made)
        return made

    with contextlib.suppress(ValueError):
        await world.call(plugin)
    gc.collect()
    assert ended == []
    made[0].peer = None


async def test_objects_that_refer_to_each_other_are_copied_once(world: World) -> None:
    def ring(secret: str) -> list[Plain]:
        items = [Plain(n) for n in range(9)]
        for a, b in itertools.pairwise([*items, items[0]]):
            a.next = b
        items[5].value = secret
        return items

    result = await pass_through(world, ring)
    assert [item.value for item in result] == [0, 1, 2, 3, 4, MARK, 6, 7, 8]
    assert all(a.next is b for a, b in itertools.pairwise([*result, result[0]]))


class TwoArguments(list):
    def __init__(self, first, second) -> None:
        super().__init__([first, second])


class Refusing(list):
    def extend(self, items):
        raise TypeError("no")


class RefusingDict(dict):
    def update(self, *items):
        raise TypeError("no")


class ThreeArguments(tuple):
    __slots__ = ()

    def _make(self):
        raise TypeError("no")


WRAPPED: dict[str, Callable[[object], object]] = {
    "list of two arguments": lambda v: TwoArguments(v, 1),
    "bounded deque": lambda v: collections.deque([1, v], maxlen=2),
    "list that refuses": lambda v: Refusing([v]),
    "dict that refuses": lambda v: RefusingDict(a=v),
    "tuple that refuses": lambda v: ThreeArguments([v]),
    "values": lambda v: {"a": v}.values(),
    "items": lambda v: {"a": v}.items(),
    "keys": lambda v: {v: "a"}.keys(),
    "user list": lambda v: collections.UserList([v]),
    "user dict": lambda v: collections.UserDict(a=v),
    "user string": lambda v: collections.UserString(f"<{v}>"),
    "nested": lambda v: [{"a": v}.values()],
}


@pytest.mark.parametrize("kind", WRAPPED)
async def test_what_holds_others_in_its_own_way(world: World, kind: str) -> None:
    result = await pass_through(world, WRAPPED[kind])
    assert clean(result)
    assert "redacted:key" in str(result)
    harmless = WRAPPED[kind]("harmless")
    assert await pass_through(world, lambda secret: harmless) is harmless


async def test_a_bounded_deque_stays_bounded(world: World) -> None:
    result = await pass_through(world, lambda secret: collections.deque([secret], maxlen=2))
    assert result.maxlen == 2


@pytest.mark.parametrize("make", [bytearray, memoryview, bytes])
async def test_buffers(world: World, make) -> None:
    result = await pass_through(world, lambda secret: make(b"<" + secret.encode() + b">"))
    assert type(result) is make
    assert bytes(result) == f"<{MARK}>".encode()


async def test_text_that_is_no_text(world: World) -> None:
    result = await pass_through(world, lambda secret: f"\ud800{secret}\udfff")
    assert result == f"\ud800{MARK}\udfff"


async def test_cycles(world: World) -> None:
    def make(secret):
        table: dict[str, object] = {"secret": secret}
        table["self"] = [table, table]
        return table

    result = await pass_through(world, make)
    assert clean(result)
    assert result["secret"] == MARK
    assert len(result["self"]) == 2

    harmless: list[object] = []
    harmless += [harmless, harmless]
    assert await pass_through(world, lambda secret: harmless) is harmless


async def test_shared_parts_are_walked_once(world: World) -> None:
    """Sixty levels of pairs would be 2^60 steps."""

    def make(secret):
        value: object = secret
        for _ in range(50):
            value = [value, value]
        return value

    result = await pass_through(world, make)
    for _ in range(49):
        assert result[0] is result[1]
        result = result[0]
    result, _ = result
    assert result == MARK


async def test_what_is_too_deep_to_search_is_withheld(world: World) -> None:
    def make(secret):
        value: object = secret
        for _ in range(5000):
            value = [value]
        return value

    result = await pass_through(world, make)
    depth = 0
    while isinstance(result, list):
        result, depth = result[0], depth + 1
    assert depth < 100
    assert "too deeply" in result


async def test_an_exception_that_holds_itself(world: World) -> None:
    def make(secret):
        error = ValueError(secret)
        error.data = [error, {"a": error}]
        return error

    assert clean(await pass_through(world, make))


# -- streams -------------------------------------------------------------------------------


async def stream_of(world: World, *chunks: object) -> list[object]:
    async def plugin(credentials):
        async with credentials["key"].reveal():
            pass
        for chunk in chunks:
            yield chunk

    return [chunk async for chunk in await world.call(plugin)]


@pytest.mark.parametrize("make", [str, str.encode, lambda s: bytearray(s.encode())])
async def test_a_secret_cut_at_every_position(world: World, make) -> None:
    text = f"before {KEY} after"
    for at in range(len(text) + 1):
        chunks = await stream_of(world, make(text[:at]), make(text[at:]))
        joined = make("").join(chunks)
        assert joined == make(f"before {MARK} after"), at
        assert {type(chunk) for chunk in chunks} == {type(make(""))}


@pytest.mark.parametrize("spelling", ["hex", "base64", "quote, all", "JSON"])
async def test_a_spelling_cut_at_every_position(world: World, spelling: str) -> None:
    text = SPELLINGS[spelling](KEY)
    for at in range(1, len(text)):
        joined = "".join(await stream_of(world, "a", text[:at], text[at:], "b"))
        assert MARK in joined
        assert clean(joined)


async def test_a_secret_of_lines_cut_at_every_position(world: World) -> None:
    """Its lines are looked for too, but the whole is one finding, not a line and a rest."""
    secret = "first-line-of-it\nsecond-line-of-it\nend"
    await world.vault.put("blob", GenericSecret(secret.encode()))
    text, cut = f"before {secret} after {secret}\n", 0

    async def plugin(credentials):
        async with credentials["blob"].reveal():
            pass
        yield text[:cut]
        yield text[cut:]

    for cut in range(len(text) + 1):
        stream = await world.call(plugin, needs=("blob",))
        joined = "".join([chunk async for chunk in stream])
        assert joined == "before [redacted:blob] after [redacted:blob]\n", cut


async def test_a_secret_in_single_characters(world: World) -> None:
    chunks = await stream_of(world, *f"to: {KEY}, {KEY[:9]}", KEY[9:], "", "end")
    assert "".join(chunks) == f"to: {MARK}, {MARK}end"


async def test_bytes_of_both_types_are_one_stream(world: World) -> None:
    data = KEY.encode()
    chunks = await stream_of(world, data[:5], bytearray(data[5:9]), memoryview(data)[9:], b"!")
    assert b"".join(chunks) == f"{MARK}!".encode()


async def test_characters_of_several_bytes_are_not_cut(world: World) -> None:
    async def plugin(credentials):
        async with credentials["login"].reveal():
            pass
        for chunk in ("pass word:\"'\\\n\u00e9", "\U0001f511", "\U0001f511\u00e9", "p\u00e9"):
            yield chunk

    chunks = [chunk async for chunk in await world.call(plugin, needs=("login",))]
    assert "".join(chunks) == "[redacted:login]\U0001f511\u00e9p\u00e9"


async def test_other_chunks_keep_their_place(world: World) -> None:
    chunks = await stream_of(world, "x" + KEY[:5], {"a": KEY}, b"y", KEY[:3], 7, None)
    assert chunks == ["x", KEY[:5], {"a": MARK}, b"y", KEY[:3], 7, None]


async def test_what_harmless_chunks_are(world: World) -> None:
    chunks = ["one ", "two ", "", b"three", 4]
    assert await stream_of(world, *chunks) == chunks


async def test_chunks_without_text_do_not_part_a_secret(world: World) -> None:
    chunks = await stream_of(world, KEY[:5], None, KEY[5:9], None, KEY[9:], "!")
    assert "".join(chunk for chunk in chunks if chunk) == f"{MARK}!"
    assert chunks.count(None) == 2


async def test_a_secret_cut_in_structured_chunks(world: World) -> None:
    for size in (1, 2, 5):
        pieces = [KEY[at : at + size] for at in range(0, len(KEY), size)]
        made = [
            {"n": at, "role": "bots", "choices": [{"delta": piece}]}
            for at, piece in enumerate(["to: ", *pieces, " end", " s", "k"])
        ]
        chunks = await stream_of(world, *made)
        text = "".join(chunk["choices"][0]["delta"] for chunk in chunks)
        passed = KEY[: (3, 2, 0)[(1, 2, 5).index(size)]]  # too short to be left out
        assert text == f"to: {passed}{MARK} end sk"
        assert [chunk["n"] for chunk in chunks] == list(range(len(made)))
        assert {chunk["role"] for chunk in chunks} == {"bots"}


async def test_harmless_structured_chunks_are_the_same_objects(world: World) -> None:
    made = [{"delta": "one s"}, {"delta": "k-two"}, {"other": "s"}, "s", [KEY[:3]], 7]
    chunks = await stream_of(world, *made)
    assert all(a is b or a == b == "s" for a, b in zip(chunks, made, strict=True))


async def test_a_structured_chunk_is_there_before_the_next_is_made(world: World) -> None:
    """A consumer that answers each chunk is never waited for in vain."""

    async def plugin(credentials):
        async with credentials["key"].reveal():
            pass
        answer = yield {"say": f"one {KEY[:9]}", "role": "bot"}
        assert answer == "to one"
        answer = yield {"say": f"{KEY[9:]} two {KEY[:5]}", "role": "bot"}
        assert answer == "to two"
        yield {"done": True}

    stream = await world.call(plugin)
    assert await anext(stream) == {"say": "one ", "role": "bot"}
    assert await stream.asend("to one") == {"say": f"{MARK} two ", "role": "bot"}
    # What only looked like a secret comes before a chunk of another shape.
    assert await stream.asend("to two") == {"say": KEY[:5], "role": "bot"}
    assert [chunk async for chunk in stream] == [{"done": True}]


@pytest.mark.parametrize("seed", range(100))
async def test_structured_text_is_whole_and_without_the_secret(world: World, seed: int) -> None:
    chance = random.Random(seed)
    text = f"\u00e9 {KEY[:7]} {KEY} {KEY}{KEY[: chance.randrange(len(KEY))]}"
    cuts = sorted(chance.choices(range(len(text)), k=chance.randrange(9)))
    made = [{"d": text[a:b]} for a, b in itertools.pairwise([0, *cuts, len(text)])]
    came = "".join(chunk["d"] for chunk in await stream_of(world, *made))
    assert KEY not in came
    for length in range(3, 0, -1):  # what was passed on before it was known to be a secret
        came = came.replace(KEY[:length] + MARK, MARK)
    assert came == text.replace(KEY, MARK)


class Lazy:
    def __init__(self, *chunks):
        self.chunks = chunks

    def __iter__(self):
        yield from self.chunks


class LazyAsync(Lazy):
    __iter__ = None

    async def __aiter__(self):
        for chunk in self.chunks:
            yield chunk


async def test_what_only_can_be_iterated_is_a_stream(world: World) -> None:
    with world.nothing_left():
        stream = await pass_lazily(world, Lazy)
        assert "".join(stream) == MARK
        stream = await pass_lazily(world, LazyAsync)
        assert "".join([chunk async for chunk in stream]) == MARK


async def pass_lazily(world: World, kind: type) -> object:
    async def plugin(credentials):
        async with credentials["key"].reveal() as secret:
            text = secret.expose_str()
        return kind(text[:5], text[5:])

    return await world.call(plugin)


async def test_what_is_more_than_a_stream_stays_what_it_is(world: World) -> None:
    import io
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        for made in (file, io.BytesIO(b"x"), Data("x"), Struct("x"), range(3), Lazy):
            assert await pass_through(world, lambda secret, made=made: made) is made


async def test_a_generators_chunks(world: World) -> None:
    def plugin(credentials):
        with credentials["key"].reveal() as secret:
            text = secret.expose_str()
        yield text[:7]
        yield text[7:]

    assert "".join(await world.call(plugin)) == MARK


# -- exceptions ----------------------------------------------------------------------------


class Shows(Exception):
    """Shows what it has nowhere that it could be cleaned."""

    def __init__(self, secret):
        super().__init__("harmless")
        self.show = lambda: secret

    def __str__(self):
        return f"it was {self.show()}"


class Slots(Exception):
    __slots__ = ("hidden",)

    def __init__(self, secret):
        super().__init__("harmless")
        self.hidden = secret


class FailsToShow(Exception):
    def __repr__(self):
        raise RuntimeError("no")


def chained(secret):
    error = ValueError("outer")
    error.__cause__ = KeyError(secret)
    error.__cause__.__context__ = OSError(5, "io", f"/tmp/{secret}")
    return error


def noted(secret):
    error = ValueError("outer")
    error.add_note(f"note {secret}")
    return error


def attributed(secret):
    error = ValueError("outer")
    error.request = {"headers": [("authorization", f"Bearer {secret}")]}
    return error


def grouped(secret):
    return ExceptionGroup("both", [ValueError(secret), ExceptionGroup("in", [chained(secret)])])


def decoding(secret):
    return UnicodeDecodeError("utf-8", secret.encode(), 0, 1, "reason")


ERRORS = {
    "argument": lambda s: ValueError("it", {"was": s}),
    "bytes": lambda s: ValueError(s.encode()),
    "attribute": attributed,
    "note": noted,
    "cause": chained,
    "group": grouped,
    "group's message": lambda s: ExceptionGroup(s, [ValueError("x")]),
    "its own text": Shows,
    "text of a cause": lambda s: raise_from(ValueError("outer"), Shows(s)),
    "slots": Slots,
    "decoding": decoding,
    "file name": lambda s: FileNotFoundError(2, "no", f"/tmp/{s}"),
    "stop": lambda s: StopAsyncIteration(s),
    "key": KeyError,
    "syntax": lambda s: SyntaxError("bad", ("file", 1, 2, f"x = {s!r}")),
    "attribute error": lambda s: AttributeError("x", name=s, obj={"a": s}),
    "can not be shown": lambda s: FailsToShow("harmless"),
}


def raise_from(error, cause):
    error.__cause__ = cause
    return error


def linked(error: BaseException) -> list[BaseException]:
    found, ahead = [], [error]
    while ahead:
        at = ahead.pop()
        if at is None or at in found:
            continue
        found.append(at)
        ahead += [at.__cause__, at.__context__, *getattr(at, "exceptions", ())]
    return found


def everything_in(error: BaseException) -> str:
    shown = []
    for each in linked(error):
        names = {name for cls in type(each).__mro__ for name in vars(cls)} | set(vars(each))
        values = [getattr(each, name, None) for name in names if not name.startswith("__")]
        shown += [
            repr(value) for value in (each.args, vars(each), *values) if not callable(value)
        ]
        try:
            shown += [str(each), repr(each)]
        except RuntimeError:
            continue
    return " ".join(shown)


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("sync", [False, True])
async def test_every_exception(world: World, kind: str, sync: bool) -> None:
    async def plugin(credentials):
        async with credentials["key"].reveal() as secret:
            raise ERRORS[kind](secret.expose_str())

    def sync_plugin(credentials):
        with credentials["key"].reveal() as secret:
            raise ERRORS[kind](secret.expose_str())

    with world.nothing_left():
        with pytest.raises(Exception) as caught:  # noqa: PT011 - of any class
            await world.call(sync_plugin if sync else plugin)
        error = caught.value
        shown = everything_in(error)
        assert clean(shown)
        assert KEY not in shown
        frames = [frame.f_locals for at in linked(error) for frame in frames_in(at)]
        assert KEY not in repr(frames)
        del caught, error, frames
    assert kind == "can not be shown" or world.events("leak")


def frames_in(error: BaseException) -> list[types.FrameType]:
    """The plugin's frames; those of this test know the secret."""
    found, step = [], error.__traceback__
    while step is not None:
        found.append(step.tb_frame)
        step = step.tb_next
    return [frame for frame in found if "plugin" in frame.f_code.co_name]


@pytest.mark.parametrize("kind", [GeneratorExit, StopIteration, KeyboardInterrupt, SystemExit])
async def test_what_ends_a_worker_thread(world: World, kind: type[BaseException]) -> None:
    def plugin(credentials):
        with credentials["key"].reveal() as secret:
            raise kind(secret.expose_str())

    caught: BaseException | None = None
    try:
        await world.call(plugin)
    except BaseException as error:
        caught = error
    assert isinstance(caught, RuntimeError if kind is StopIteration else kind)
    assert KEY not in everything_in(caught)
    frames = [frame.f_locals for at in linked(caught) for frame in frames_in(at)]
    assert KEY not in repr(frames)


async def test_an_exception_keeps_its_class_and_what_is_harmless(world: World) -> None:
    class Own(Exception):
        pass

    async def plugin(credentials):
        async with credentials["key"].reveal() as secret:
            error = Own("code", 7, secret.expose_str())
            error.status = 503
            raise error

    with pytest.raises(Own) as caught:
        await world.call(plugin)
    assert caught.value.args == ("code", 7, MARK)
    assert caught.value.status == 503
    assert [e.detail for e in world.events("leak")] == ["exception"]


async def test_an_exit_keeps_its_meaning(world: World) -> None:
    async def plugin(credentials):
        async with credentials["key"].reveal() as secret:
            raise SystemExit(secret.expose_str())

    try:
        await world.call(plugin)
    except SystemExit as error:
        caught = error
    assert caught.code == MARK


# -- policy, and what can't be searched ------------------------------------------------


async def test_a_leak_can_be_an_error(tmp_path) -> None:
    async with world_in(tmp_path, on_leak=OnLeak.ERROR) as world:

        async def returns(credentials):
            async with credentials["key"].reveal() as secret:
                return secret.expose_str()

        async def raises(credentials):
            raise ValueError(await returns(credentials))

        async def streams(credentials):
            text = await returns(credentials)
            yield "harmless"
            yield text[:6]
            yield text[6:]
            pytest.fail("it must not go on")

        for function in (returns, raises):
            with world.nothing_left(), pytest.raises(SecretLeakError) as caught:
                await world.call(function)
            assert clean(everything_in(caught.value))
            del caught
        with world.nothing_left():
            passed: list[object] = []
            with pytest.raises(SecretLeakError):
                await collect(await world.call(streams), passed)
            assert clean(passed)
        assert len(world.events("leak")) == 3


async def collect(stream, passed: list[object]) -> None:
    async for chunk in stream:
        passed.append(chunk)  # noqa: PERF401 - what came before the error counts


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("why", ["deleted", "log"])
async def test_what_can_not_be_searched_is_withheld(
    world: World, monkeypatch: pytest.MonkeyPatch, why: str, raises: bool
) -> None:
    """The credential is gone with its key, or the leak can't be logged."""

    async def plugin(credentials):
        async with credentials["key"].reveal() as secret:
            text = secret.expose_str()
        if why == "deleted":
            await world.vault.delete("key")
        else:
            from apex_creds.audit.segment import Segment

            def refuse(*args, **kwargs):
                raise AuditUnavailableError("No space left.")

            monkeypatch.setattr(Segment, "append", refuse)
        if raises:
            raise ValueError(text)
        return text

    with world.nothing_left():
        with pytest.raises((SecretLeakError, AuditUnavailableError)) as caught:
            await world.call(plugin)
        assert clean(everything_in(caught.value))
        del caught
        monkeypatch.undo()


class Shy(Mapping):
    """As urllib3's container of pools: it says how many, and not which."""

    def __init__(self, held: dict[str, object]) -> None:
        self.held = held

    def __getitem__(self, key: str) -> object:
        return self.held[key]

    def __len__(self) -> int:
        return len(self.held)

    def __iter__(self):
        raise NotImplementedError("Iteration over this class is unlikely to be threadsafe.")


async def test_a_container_that_can_not_be_iterated_is_an_object(world: World) -> None:
    async def plugin(credentials):
        async with credentials["key"].reveal() as secret:
            return [Shy({"a": 1}), Shy({"b": secret.expose_str()})]

    untouched, covered = await world.call(plugin)
    assert untouched["a"] == 1
    assert clean(covered["b"])


async def test_needles_are_wiped(world: World) -> None:
    before = open_slots()
    for _ in range(3):
        await pass_through(world, lambda secret: secret)
        chunks = await stream_of(world, KEY)
        assert chunks == [MARK]
    assert open_slots() <= before


# -- what a plugin names ------------------------------------------------------------------


@pytest.mark.parametrize("on_leak", OnLeak)
async def test_names_that_a_plugin_chooses_are_searched(tmp_path, on_leak: OnLeak) -> None:
    async with world_in(tmp_path, on_leak=on_leak) as world:

        async def raises(credentials):
            async with credentials["key"].reveal() as secret:
                name = secret.expose_str()
            raise type(name, (Exception,), {})("x")

        async def asks(credentials):
            async with credentials["key"].reveal() as secret:
                credentials[secret.expose_str()]

        for function in (raises, asks):
            with pytest.raises(ApexCredsError) as caught:
                await world.call(function)
            assert clean(everything_in(caught.value))
        assert world.reasons()
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert files
        assert not any(KEY.encode() in path.read_bytes() for path in files)


@pytest.mark.parametrize("name", [None, 5, [], {}, object(), "\ud800", "x" * 10_000])
async def test_whatever_is_asked_for_is_the_one_denial(world: World, name: object) -> None:
    async def plugin(credentials):
        assert credentials.get(name) is None
        assert name not in credentials
        credentials[name]

    with pytest.raises(AccessDeniedError, match="was refused"):
        await world.call(plugin)
    assert len(world.reasons()) == 1


# -- large results ------------------------------------------------------------------------

LARGE: dict[str, Callable[[str], object]] = {
    "many": lambda s: [*(str(at) for at in range(5000)), s],
    "long": lambda s: "x" * 400_000 + s,
    "dict": lambda s: {"a": {str(at): s for at in range(5000)}},
    "struct": lambda s: Struct([b"x" * 400_000, s]),
}


@pytest.mark.parametrize("kind", LARGE)
async def test_a_large_result_is_searched_in_a_thread(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    threads: list[bool] = []
    search = Redactor.value

    def watched(self, value, *, where):
        threads.append(threading.current_thread() is threading.main_thread())
        return search(self, value, where=where)

    monkeypatch.setattr(Redactor, "value", watched)
    result = await pass_through(world, LARGE[kind])
    assert threads == [False]
    assert MARK in repr(result)
    assert KEY not in repr(result)
    assert await pass_through(world, str) == MARK
    assert threads == [False, True], "a small one is not worth a thread"


async def test_a_secret_is_found_at_any_place_in_long_data(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apex_creds.redaction.matcher._PIECE", 64)
    for at in range(100):
        made = b"s" * at + KEY.encode() + b"k" * 70
        result = await pass_through(world, lambda secret, made=made: made)
        assert result == b"s" * at + MARK.encode() + b"k" * 70
