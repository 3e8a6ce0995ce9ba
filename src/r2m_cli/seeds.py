"""Seeds: every random draw of a run is a function of (seed, stream, step, sample), so that any sample can be drawn again."""

from enum import IntEnum, unique


@unique
class Stream(IntEnum):
    """Every stream of random numbers. No two share a value; the value encodes the tuple that a seed is mixed from.

    The last two digits are the stream's number. The hundreds give the form of the tuple: 0 is (seed, number, step, sample),
    200 is (seed, number), 300 is (seed, number, place). So the tuples of two streams differ in length or in the second number.
    900 is the order of a fit's rows, (seed + number, pass). It is the oldest form, kept because every fitted model depends on
    it; its tuples may coincide with those of a run with another seed.

    Never reuse a value for another stream: old runs could no longer be reproduced.
    """

    # streams of a run, from `seed`
    ROLLOUT = 0  # responses of a step
    EVAL = 1  # responses to the fixed prompts (step 0) and of best-of-n (step 1)
    GREEDY = 2  # responses of temperature 0, which need no draws
    PROMPT_ORDER = 304
    NOISE = 306  # feedback=noise; from a sequence's own seed
    ADAPTER = 207  # initial weights
    REPLAY = 308  # which labelled pairs a step replays
    WARM_UP = 209  # which pairs the warm-up reads
    WARM_UP_ORDER = 309
    LORA = 210  # initial weights
    KNOWN_PAIRS = 212  # which of the reward model's pairs the run knows
    LABELLER = 213  # the judge feedback.judge=labeller
    ANALYSIS_PAIRS = 217  # which pairs r2m analyze reads
    ANALYSIS_SIDES = 218
    ANALYSIS_COUPLES = 219
    SCORED_PAIR = 320  # noise for a pair that is only scored: from seed 0, so the same every time
    WARM_UP_STEP = 321  # noise for an update of the warm-up
    REPLAY_STEP = 322  # noise for the pairs that a step replays
    PAIR_OF_STEP = 323  # one pair of such an update, from the update's seed
    SIDE_OF_PAIR = 324  # chosen or rejected, from the pair's seed
    REQUEST = 326  # one request to vLLM, of the response's seed and its prompt

    # streams of the data and the fitted models, from `data.seed`
    WORLD_EVAL = 200  # evaluation prompts
    DEMONSTRATIONS = 201  # their prompts and responses
    WORLD_PROMPTS = 202
    SPLIT_OR_LABELS = (
        203  # which prompts of a file are held out; in a world, which needs no split, the labellers' choices
    )
    PAIR_PROMPTS = 204
    PAIR_RESPONSES = 4
    BOOTSTRAP = 305  # rows of an ensemble's member
    REFERENCES = 316  # the world's side of a win rate
    MEMBER = 325  # initial weights and row order of an ensemble's members, except the first
    SFT_ORDER = 901
    REWARD_ORDER = 902


NUMBERS = {0: 4, 2: 2, 3: 3}  # hundreds of a stream -> length of its tuples
FIT = 9


def draw_seed(stream: Stream, seed: int, *place: int) -> int:
    """The seed of one draw of a stream.

    Args:
        place: which draw it is: the numbers of the stream's tuple after seed and number.

    Raises:
        TypeError: too many or too few numbers; such a tuple could be another stream's.
    """
    form, number = divmod(int(stream), 100)
    if len(place) != (1 if form == FIT else NUMBERS[form] - 2):
        raise TypeError(f"{stream!r}: {len(place)} numbers after the stream")
    return mix(seed + number, *place) if form == FIT else mix(seed, number, *place)


def mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers (a splitmix64 chain): similar tuples give unrelated seeds. Only for `draw_seed`."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
