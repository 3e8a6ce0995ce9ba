"""Which labelled pairs `r2m analyze` compares."""

import time

from r2m_cli.analysis.sequences import select
from r2m_cli.config.schema import AnalysisConfig
from r2m_cli.conversation import Pair


def _pair(prompt: str, chosen: str = "i suggest pear .") -> Pair:
    return Pair(({"role": "user", "content": prompt},), chosen, "apple")


def test_pairs_that_leave_no_room_are_passed_over_and_counted(chat) -> None:
    fits = [_pair("fruit : pear apple"), _pair("fruit : apple pear")]
    limit = 1 + max(len(chat.prompt_ids(p.prompt)) + len(chat.response_ids(p.prompt, p.chosen)) for p in fits)
    long_prompt = _pair("fruit : pear apple " * limit)
    long_reply = _pair("fruit : plum pear", chosen="pear " * limit)
    same = _pair("fruit : plum apple", chosen="apple")
    for extra, left_out in (([long_prompt], 1), ([long_reply], 1), ([same], 1), ([long_prompt, long_reply, same], 3)):
        selection = select([*fits, *extra], chat, limit, 0, AnalysisConfig())
        assert (selection.left_out, selection.compared) == (left_out, 4)


def test_a_prompt_that_fills_the_limit_to_the_last_token_but_one_is_read(chat) -> None:
    pairs = [_pair("fruit : pear apple"), _pair("fruit : apple pear")]
    needed = max(len(chat.prompt_ids(p.prompt) + chat.response_ids(p.prompt, p.chosen)) for p in pairs)
    assert select(pairs, chat, needed, 0, AnalysisConfig()).left_out == 0
    assert select([*pairs, _pair("fruit : plum pear apple")], chat, needed, 0, AnalysisConfig()).left_out == 1


def test_of_a_very_long_prompt_only_the_beginning_is_tokenized(chat) -> None:
    """Two megabytes: to tokenize them with each reply takes four seconds, and a real tokenizer is slower."""
    pairs = [_pair("fruit : pear apple " * 100_000), _pair("fruit : pear apple"), _pair("fruit : apple pear")]
    begun = time.process_time()
    assert select(pairs, chat, 64, 0, AnalysisConfig()).left_out == 1
    assert time.process_time() - begun < 1
