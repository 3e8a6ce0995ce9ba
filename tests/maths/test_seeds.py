"""Every random draw names its stream, and no two streams can have a draw in common."""

import ast
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import r2m_cli
from r2m_cli.seeds import Stream, draw_seed, mix

SOURCES = sorted(Path(r2m_cli.__file__).parent.rglob("*.py"))
PLACES = {0: 2, 2: 0, 3: 1, 9: 1}  # numbers behind a stream's own


def _tuple(stream: Stream, seed: int, place: tuple[int, ...]) -> tuple[int, ...]:
    """What a seed is mixed from, written anew from the docstring of Stream."""
    form, number = stream // 100, stream % 100
    return (seed + number, *place) if form == 9 else (seed, number, *place)


def test_every_draw_of_the_sources_names_a_stream() -> None:
    """`mix` is called by draw_seed alone, and draw_seed gets a member of Stream, or a parameter that is declared as one."""
    used = set()
    for file in SOURCES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        typed = {
            argument.arg
            for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
            for argument in (*node.args.args, *node.args.kwonlyargs)
            if isinstance(argument.annotation, ast.Name) and argument.annotation.id == "Stream"
        }  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Stream":
                used.add(node.attr)
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id == "mix":
                assert file.name == "seeds.py", f"{file}:{node.lineno}: mix without a stream; use draw_seed"
            if node.func.id == "draw_seed":
                first = node.args[0]
                named = isinstance(first, ast.Attribute) and ast.unparse(first.value) == "Stream"
                handed_on = isinstance(first, ast.Name) and first.id in typed
                assert named or handed_on, f"{file}:{node.lineno}: {ast.unparse(node)} names no stream"
    assert used == {stream.name for stream in Stream}, "no stream is left without a draw"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_two_streams_of_one_seed_have_no_draw_in_common(data: st.DataObject) -> None:
    small = st.integers(0, 40)
    one, other = data.draw(st.lists(st.sampled_from(list(Stream)), min_size=2, max_size=2, unique=True))
    seed = data.draw(small)
    places = [tuple(data.draw(small) for _ in range(PLACES[stream // 100])) for stream in (one, other)]
    draws = [draw_seed(stream, seed, *place) for stream, place in zip((one, other), places)]
    assert draws == [mix(*_tuple(stream, seed, place)) for stream, place in zip((one, other), places)]
    assert draws[0] != draws[1]


def test_the_tuples_of_different_streams_differ_whatever_their_seeds() -> None:
    """But for the two oldest, whose first number is seed + number: see Stream."""
    forms = [(stream // 100, stream % 100) for stream in Stream if stream // 100 != 9]
    assert len(set(forms)) == len(forms)
    assert {form for form, _ in forms} <= {0, 2, 3}


def test_a_draw_with_another_count_of_numbers_is_refused() -> None:
    with pytest.raises(TypeError, match=r"ADAPTER.*: 1 numbers after the stream"):
        draw_seed(Stream.ADAPTER, 0, 1)
    with pytest.raises(TypeError, match=r"ROLLOUT.*: 1 numbers"):
        draw_seed(Stream.ROLLOUT, 0, 1)


def test_draws_that_published_runs_rest_on() -> None:
    """By hand, from the numbers that these streams have always had."""
    assert draw_seed(Stream.ROLLOUT, 5, 3, 17) == mix(5, 0, 3, 17)
    assert draw_seed(Stream.EVAL, 5, 0, 17) == mix(5, 1, 0, 17)
    assert draw_seed(Stream.WORLD_EVAL, 5) == mix(5, 0)
    assert draw_seed(Stream.PROMPT_ORDER, 5, 2) == mix(5, 4, 2)
    assert draw_seed(Stream.ADAPTER, 5) == mix(5, 7)
    assert draw_seed(Stream.SFT_ORDER, 5, 2) == mix(6, 2)
    assert draw_seed(Stream.REWARD_ORDER, 5, 2) == mix(7, 2)
