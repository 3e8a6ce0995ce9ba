"""A run's data: a world whose true reward is known, or a file that is split once into training and held-out parts."""

import inspect
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from pkgutil import resolve_name

from r2m_cli.config.registry import WORLDS, has_own_models
from r2m_cli.config.schema import DataConfig
from r2m_cli.console import say
from r2m_cli.conversation import Pair, Prompt
from r2m_cli.data.preferences import Dropped, describe, load_preferences, reasons
from r2m_cli.data.rendered import rendered_notes
from r2m_cli.data.template import ChatFormat
from r2m_cli.data.world import Labellers, World
from r2m_cli.errors import UserError
from r2m_cli.files.cache import digest_of
from r2m_cli.seeds import Stream, draw_seed
from r2m_cli.text import from_home


@dataclass(frozen=True)
class Source:
    """Prompts, labelled pairs and demonstrations; in a world the pairs are sampled later, from a policy."""

    prompts: list[Prompt]
    eval_prompts: list[Prompt]
    pairs: list[Pair]
    heldout_pairs: list[Pair]
    demonstrations: list[tuple[Prompt, str]]
    references: list[tuple[Prompt, str]] = field(default_factory=list)  # good replies to held-out prompts
    world: World | None = None
    notes: list[str] = field(default_factory=list)  # what was left out, for the user
    places: dict[tuple[tuple[str, str], ...], str] = field(default_factory=dict)  # positions of a file's prompts

    def gold(self, prompt: Prompt, response: str, finished: bool) -> float:
        """The true reward of a response to one of the world's prompts, in points."""
        assert self.world is not None
        return self.world.score(prompt[-1]["content"], response, finished)

    def place(self, prompt: Prompt) -> str:
        """Position of the first row with a prompt, "file:line" or "file:row N"; in a world, the prompt's text."""
        return self.places.get(_identity(prompt), f"prompt {prompt[-1]['content'][:40]!r}")

    def rows(self) -> list[tuple[str, Prompt, tuple[str, ...]]]:
        """Position, prompt and replies of all rows of a file, in its order."""
        rows: list[tuple[str, Prompt, tuple[str, ...]]] = []
        rows += [(self.place(prompt), prompt, ()) for prompt in (*self.prompts, *self.eval_prompts)]
        pairs = (*self.pairs, *self.heldout_pairs)
        rows += [(pair.where, pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs]
        rows += [(self.place(p), p, (reply,)) for p, reply in (*self.demonstrations, *self.references)]
        order = {place: i for i, place in enumerate(self.places.values())}
        return sorted(rows, key=lambda row: order.get(row[0], len(order)))


def user_prompt(text: str) -> Prompt:
    """A one-message conversation."""
    return ({"role": "user", "content": text},)


def described(config: DataConfig) -> str:
    """The data's name in a line of progress."""
    return f"data.path={config.path}" if config.kind == "file" else f"the {config.kind} world"


def load_source(config: DataConfig, eval_prompts: int, evaluating: bool = False) -> Source:
    """Load everything that the configuration's data part names.

    Args:
        eval_prompts: evaluation prompts to draw from the world; a file gives all of its held-out prompts.
        evaluating: nothing is trained, so data.holdout=1 may hold out every row of a file.

    Raises:
        UserError: from the loader; or there are too few rows to hold any out.
    """
    return _file(config, evaluating) if config.kind == "file" else _world(config, eval_prompts)


def world_of(config: DataConfig) -> World:
    """The world named by data.kind. Raises UserError if a package that it needs is not installed."""
    world = world_class(config.kind)
    return world(labellers_of(config, world.LABELLERS))


def world_class(kind: str) -> type[World]:
    """The class of a world of the registry."""
    world: type[World] = resolve_name(WORLDS[kind].world)
    return world


def labellers_of(config: DataConfig, own: Labellers) -> Labellers:
    """A world's own labellers, with the configuration's settings (data.label_bias, ...) applied."""
    said = {"bias": config.label_bias, "temperature": config.label_temperature, "noise": config.label_noise}
    return replace(own, **{name: value for name, value in said.items() if value is not None})


def _world(config: DataConfig, eval_prompts: int) -> Source:
    rng = random.Random(draw_seed(Stream.DEMONSTRATIONS, config.seed))
    world = world_of(config)
    wanted = config.demonstrations if has_own_models(config.kind) else 0  # otherwise its policies can already chat
    asked = world.prompts(wanted, draw_seed(Stream.DEMONSTRATIONS, config.seed))
    return Source(
        prompts=[user_prompt(p) for p in world.prompts(config.prompts, draw_seed(Stream.WORLD_PROMPTS, config.seed))],
        eval_prompts=[user_prompt(p) for p in world.prompts(eval_prompts, draw_seed(Stream.WORLD_EVAL, config.seed))],
        pairs=[],
        heldout_pairs=[],
        demonstrations=[(user_prompt(p), world.demonstration(p, rng)) for p in asked],
        world=world,
    )


def _file(config: DataConfig, evaluating: bool) -> Source:
    assert config.path is not None
    loaded = load_preferences(config.path, config.split, config.rows, config.subset)
    prompts = list(loaded.prompts)
    random.Random(draw_seed(Stream.SPLIT_OR_LABELS, config.seed)).shuffle(prompts)
    held = round(config.holdout * len(prompts))
    if held < 1 or (held >= len(prompts) and not evaluating):
        raise UserError(
            f"data.holdout={config.holdout} of {len(prompts)} distinct prompts in {config.path} leaves {held} for "
            f"evaluation and {len(prompts) - held} for training; both need at least one"
        )
    # Split by prompt: two pairs of one prompt must not end up on both sides.
    heldout = {_identity(p) for p in prompts[:held]}
    replies = [(p.prompt, p.chosen) for p in loaded.pairs] + loaded.completions
    return Source(
        prompts=prompts[held:],
        eval_prompts=prompts[:held],
        pairs=[p for p in loaded.pairs if _identity(p.prompt) not in heldout],
        heldout_pairs=[p for p in loaded.pairs if _identity(p.prompt) in heldout],
        demonstrations=[(prompt, reply) for prompt, reply in replies if _identity(prompt) not in heldout],
        references=[(prompt, reply) for prompt, reply in replies if _identity(prompt) in heldout],
        notes=describe(loaded),
        places={_identity(prompt): place for prompt, place in zip(loaded.prompts, loaded.places, strict=True)},
    )


def renderable(source: Source, chats: Sequence[ChatFormat]) -> Source:
    """A file's source without the prompts that a model's chat template refuses, and without their pairs and replies.

    Templates refuse roles (a system message, a first turn of the assistant). So one prompt of each sequence of roles is
    tried, and further ones only while they are refused. Notes report what is left out, with its position, and texts that are
    already rendered.

    Args:
        chats: the formats of all models that will read the prompts.

    Raises:
        UserError: all prompts of the training or the evaluation part are refused.
    """
    source = replace(
        source, notes=[*source.notes, *(rendered_notes(source.rows(), chats) if source.world is None else [])]
    )
    refused: dict[tuple[tuple[str, str], ...], Dropped] = {}
    for chat in chats if source.world is None else ():
        accepted: set[tuple[str, ...]] = set()
        for prompt in (*source.prompts, *source.eval_prompts):
            roles = tuple(turn["role"] for turn in prompt)
            try:
                if roles not in accepted:
                    chat.prompt_ids(prompt)
                    chat.conversation_ids(prompt, "yes")
                    accepted.add(roles)
            except UserError as error:
                refused.setdefault(_identity(prompt), Dropped(source.place(prompt), str(error)))
    dropped = [refused[key] for key in source.places if key in refused]  # in the file's order
    if not dropped:
        return source

    def kept(prompt: Prompt) -> bool:
        return _identity(prompt) not in refused

    for part in (source.prompts, source.eval_prompts):
        if part and not any(map(kept, part)):
            raise UserError(f"{dropped[0].where}: {dropped[0].reason} (every prompt, {len(part)} of them, is refused)")
    return replace(
        source,
        prompts=[p for p in source.prompts if kept(p)],
        eval_prompts=[p for p in source.eval_prompts if kept(p)],
        pairs=[p for p in source.pairs if kept(p.prompt)],
        heldout_pairs=[p for p in source.heldout_pairs if kept(p.prompt)],
        demonstrations=[d for d in source.demonstrations if kept(d[0])],
        references=[r for r in source.references if kept(r[0])],
        notes=[*source.notes, *reasons(dropped)],
    )


def say_notes(notes: Sequence[str]) -> None:
    """Print what was left out, for commands that do not keep notes themselves."""
    for note in notes:
        say(f"note: {note.strip()}")


def _identity(prompt: Prompt) -> tuple[tuple[str, str], ...]:
    return tuple((m["role"], m["content"]) for m in prompt)


def identity_of(config: DataConfig, labels: bool = True) -> list[object]:
    """The data's identity, for a cache key: the world's code and labellers, or the file's digest (a hub data set's name).

    Args:
        labels: include the labellers' settings; the policy's demonstrations do not depend on them.
    """
    if config.kind != "file":
        world = world_class(config.kind)
        code = digest_of(Path(inspect.getfile(world)))  # a world's code may change during development
        return [config.kind, config.seed, code, *([asdict(labellers_of(config, world.LABELLERS))] if labels else [])]
    path = from_home(config.path or "")
    content = digest_of(path) if path.exists() else config.path
    subset = [config.subset] if config.subset is not None else []
    return ["file", config.seed, content, config.split, config.rows, config.holdout, *subset]


def fitting(prompts: list[Prompt], chat: ChatFormat, limit: int) -> list[Prompt]:
    """The prompts of at most `limit` policy tokens, generation prompt included."""
    return [p for p in prompts if len(chat.prompt_ids(p)) <= limit]


class PromptStream:
    """The prompts, reshuffled for every pass; the prompts of a step depend only on (seed, step)."""

    def __init__(self, prompts: list[Prompt], seed: int):
        self.prompts = prompts
        self.seed = seed

    def batch(self, step: int, size: int) -> list[Prompt]:
        """The `size` prompts of a 0-based step."""
        drawn = []
        orders: dict[int, list[int]] = {}
        for position in range(step * size, (step + 1) * size):
            epoch, place = divmod(position, len(self.prompts))
            if epoch not in orders:
                orders[epoch] = list(range(len(self.prompts)))
                random.Random(draw_seed(Stream.PROMPT_ORDER, self.seed, epoch)).shuffle(orders[epoch])
            drawn.append(self.prompts[orders[epoch][place]])
        return drawn
