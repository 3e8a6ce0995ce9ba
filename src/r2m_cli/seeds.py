"""Seeds: every random draw of a run is a function of (seed, stage, step, sample), so that any sample can be drawn again."""


def mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers (a splitmix64 chain): near tuples give unrelated seeds."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
