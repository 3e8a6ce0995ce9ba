"""Composing a configuration as the command does, for the tests of this folder."""

from pathlib import Path

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore

from r2m_cli.config.check import typed, validate
from r2m_cli.config.schema import Config, ReportConfig
from r2m_cli.files import jobs  # noqa: F401  registers the names of the run folders

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"


def composed(*overrides: str, word: str = "train") -> Config:
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(name="report_schema", node=ReportConfig)
    with initialize_config_module("r2m_cli.conf", version_base="1.3"):
        config: Config = typed(compose(word, list(overrides)))
    validate(config)
    return config


def files(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))
