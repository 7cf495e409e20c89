"""What processes send each other arrives as it was, and nothing in the package runs what it reads."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haqjax.run.distributed as distributed
import haqjax.run.messages as messages
from haqjax.run import SearchConfig
from haqjax.run.messages import pack, pack_error, unpack
from haqjax.types import Codebook, Ranges, Rounding
from test_layering import FILES

ARRAYS = [np.arange(6).reshape(2, 3)[:, ::-1], np.array([True, False]), np.zeros((0, 3), np.int8), np.array(1.5, ">f8")]
ARRAYS += [
    np.array([np.nan, -0.0, np.inf], np.float32),
    np.array([1 + 2j]),
    np.array([1.5], jnp.bfloat16),
    np.uint64(2**63),
]


def same(one, other):
    """Compares two values to the last bit, and their types."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(left).dtype == np.asarray(right).dtype.newbyteorder("=") and np.shape(left) == np.shape(right)
        assert np.asarray(left).tobytes() == np.asarray(right).astype(np.asarray(left).dtype).tobytes()


CONFIG = SearchConfig.of(model="resnet20", budget="0.5", splits=("train", "val"))
PLAIN = [None, True, 8, -(2**70), 0.1, float("inf"), "a\nb\x00é", [], (), {}, [1, (2, [None])], {"a.b": {"": (1,)}}]
CLIP, BOOKS = np.ones((1, 2, 8), np.float32), Codebook((np.zeros((8, 2), np.uint8),), np.zeros((1, 8, 256)))
ROUNDED = Rounding((np.zeros((8, 2), np.int8),), None, None, (np.ones(2),))


@pytest.mark.parametrize("value", [*PLAIN, Path("runs/a b"), (CONFIG, Path("x")), [CONFIG]])
def test_a_plain_value_arrives_as_it_was(value):
    arrived = unpack(pack(value))
    assert arrived == value and type(arrived) is type(value)


@pytest.mark.parametrize(
    "value",
    [(ARRAYS, 3), *ARRAYS, Ranges(CLIP, np.array([True]), False)]
    + [Ranges(CLIP, np.array([True]), codebook=BOOKS), Ranges(CLIP, np.array([True]), rounding=ROUNDED)],
)
def test_arrays_arrive_as_they_were(value):
    same(unpack(pack(value)), value)


def test_arrays_on_a_device_come_to_the_host():
    arrived = unpack(pack({"w": jnp.arange(3)}))["w"]
    assert isinstance(arrived, np.ndarray) and arrived.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "value",
    [object(), {1: 2}, {"a": jax.random.key(0)}, np.array([None]), np.array("x"), 1j, b"x", len, ValueError("x")],
)
def test_what_cannot_be_sent_is_told(value):
    with pytest.raises(TypeError, match="cannot send a .* to another process"):
        pack([value])


@pytest.mark.parametrize(
    "error",
    [ValueError("bits"), FileNotFoundError("no such"), OSError(28, "full", "a"), RuntimeError(""), ImportError("é")],
)
def test_an_error_arrives_as_kind_and_text(error):
    arrived = unpack(pack_error(error))
    assert type(arrived) is type(error) and str(arrived) == str(error)


def test_an_error_of_another_kind_is_named():
    class StrangeError(Exception):
        pass

    assert repr(unpack(pack_error(StrangeError("x\ny")))) == "RuntimeError('StrangeError: x y')"
    assert type(unpack(pack_error(UnicodeDecodeError("utf-8", b"a", 0, 1, "bad")))) is ValueError


GOOD = pack([1, np.zeros(4), "text"])


WRONG = [b"", b"\x80\x04N.", GOOD[:-1], GOOD[:12], b"\xff" * 20, b"\x02" + bytes(7) + b"[]"]
TREES = ['["os.system", ["x"]]', '["Ranges", [1]]', '["SearchConfig", [1]]', '["dict", [1]]', '["path", [1]]', "[[]]"]
TREES += [f'["array", ["{kind}", [{shape}]]]' for kind, shape in (("object", 1), ("float32", 10**12), ("float32", -1))]
TREES += ['["error", ["SystemExit", "x"]]', "[" * 100000, "[1, 2, 3]"]


@pytest.mark.parametrize("data", WRONG + [len(tree).to_bytes(8, "little") + tree.encode() for tree in TREES])
def test_other_bytes_are_refused(data):
    with pytest.raises(ValueError, match="no message of this version of haqjax") as told:
        unpack(data)
    assert str(told.value).isprintable() and len(str(told.value)) < 300


@pytest.fixture
def two(monkeypatch):
    """Makes this process the first of two, and keeps what it sends; returns a switch to the second."""
    sent = []

    def broadcast(data):
        if distributed.is_first():
            sent.append(data)
        return sent[-1]

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "_broadcast", broadcast)
    return lambda: monkeypatch.setattr(distributed, "is_first", lambda: False)


def test_others_get_what_the_first_made(two):
    assert distributed.from_first(lambda: ("a", 1)) == ("a", 1)
    two()
    assert distributed.from_first(lambda: pytest.fail("called in the second")) == ("a", 1)


@pytest.mark.parametrize(
    "make, kind, message",
    [
        (lambda: int("x"), ValueError, "invalid literal"),
        (lambda: {}[1], KeyError, "1"),
        (object, TypeError, "cannot send a object"),
    ],
)
def test_others_get_the_error_of_the_first(two, make, kind, message):
    with pytest.raises(kind, match=message):
        distributed.from_first(make)
    two()
    with pytest.raises(ValueError if kind is ValueError else RuntimeError, match=message):
        distributed.from_first(make)


# Modules whose reading of a file or a message can run what stands in it, and calls that can.
RUNNING = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "joblib",
    "jsonpickle",
    "copyreg",
    "imp",
}
CALLS = {"eval", "exec", "compile", "__import__", "unsafe_load", "full_load", "read_pickle", "fromfile"}


@pytest.mark.parametrize("name", FILES)
def test_nothing_runs_what_it_reads(name):
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = {alias.name for alias in node.names} | (
                {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
            )
            assert not {part for one in named for part in one.split(".")} & RUNNING, f"{name}:{node.lineno}"
        if isinstance(node, ast.Call):
            check_call(
                name, node, ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            )


def check_call(name: str, node: ast.Call, function: str, words: dict[str, str]) -> None:
    where, last = f"{name}:{node.lineno} {function}", function.split(".")[-1]
    assert last not in CALLS or function in ("re.compile",) or function.endswith(").compile"), where
    assert words.get("allow_pickle", "False") == "False", where
    assert words.get("shell", "False") == "False", where
    if function in ("np.load", "numpy.load", "jnp.load"):
        assert words.get("allow_pickle") == "False", f"{where}: say allow_pickle=False"
    if function == "torch.load":
        assert words.get("weights_only") == "True", where
    if function in ("yaml.load", "yaml.load_all"):
        assert [ast.unparse(word) for word in node.args[1:]] in (["_Loader"], ["yaml.SafeLoader"]), where


def test_a_loader_of_yaml_of_our_own_is_a_safe_one():
    import yaml

    from haqjax import reading

    assert issubclass(reading._Loader, yaml.SafeLoader)
    assert messages.ERRORS.keys().isdisjoint({"SystemExit", "KeyboardInterrupt", "Exception"})
