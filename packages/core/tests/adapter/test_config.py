import json
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig
from peft.utils import PeftType

from medqua.core.adapter.config import QuasarConfig
from medqua.core.errors import ConfigError


def test_round_trip_through_json(tmp_path: Path) -> None:
    config = QuasarConfig(
        n_qubits=4,
        blocks=[2, 4],
        threshold_range=(0.1, 0.9),
        lora={"r": 4, "target_modules": {"v_proj", "q_proj"}},
        modules_to_save=["lm_head"],
    )
    config.save_pretrained(str(tmp_path))
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stored["peft_type"] == "QUASAR"
    assert stored["lora"]["target_modules"] == ["q_proj", "v_proj"]
    for loaded in (PeftConfig, QuasarConfig):
        again = loaded.from_pretrained(str(tmp_path))
        assert isinstance(again, QuasarConfig)
        assert again == config
        assert again.threshold_range == (0.1, 0.9)


def test_registers_one_member() -> None:
    assert QuasarConfig().peft_type is PeftType["QUASAR"]
    assert [t for t in PeftType if t.value == "QUASAR"] == [PeftType("QUASAR")]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"rank": 0}, "rank = 0"),
        ({"n_qubits": 1}, "n_qubits = 1"),
        ({"n_qubits": 2.0}, "n_qubits = 2.0"),
        ({"n_qubits": True}, "n_qubits = True"),
        ({"max_depth": 0}, "max_depth = 0"),
        ({"every": 0}, "every = 0"),
        ({"target_ratio": 1.2}, "target_ratio = 1.2"),
        ({"target_ratio": -0.1}, "target_ratio = -0.1"),
        ({"target_ratio": float("nan")}, "target_ratio = nan"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"ema_decay": 1.0}, "ema_decay = 1.0"),
        ({"epsilon": 2.0}, "epsilon = 2.0"),
        ({"temperature": 0.0}, "temperature = 0.0"),
        ({"alpha": 0.0}, "alpha = 0.0"),
        ({"eta": -1.0}, "eta = -1.0"),
        ({"gumbel_floor": 2.0}, "gumbel_floor = 2.0"),
        ({"threshold_range": (0.9, 0.1)}, "threshold_range"),
        ({"threshold_range": (0.0, 2.0)}, "threshold_range"),
        ({"threshold_range": (0.5,)}, "threshold_range"),
        ({"shots": 0}, "shots = 0"),
        ({"noise": {"onequbit": 0.1}}, "did you mean 'one_qubit'"),
        ({"noise": {"t1": 1.0, "t2": 1.0}}, "without one_qubit_time, two_qubit_time"),
        ({"noise": {"readout": 0.1, "readout_0": 0.1}}, "readout beside readout_0"),
        ({"noise": {"two_qubit": 1.5}}, "must be a probability"),
        ({"noise": {}}, "leave noise out"),
        ({"blocks": "first"}, "blocks"),
        ({"blocks": []}, "blocks"),
        ({"blocks": [0]}, "blocks"),
        ({"entropy": "normalized"}, "did you mean 'normalised'"),
        ({"routing": "topK"}, "did you mean 'topk'"),
        ({"entangler": "star"}, "ring, line, all, none"),
        ({"lora": {"rank": 4}}, "'rank'"),
        ({"lora": {"lora_alfa": 4}}, "did you mean 'lora_alpha'"),
        ({"lora": {"bias": "all"}}, "'bias'"),
        ({"lora": {"modules_to_save": ["x"]}}, "'modules_to_save'"),
        ({"lora": {"r": 0}}, "r = 0"),
        ({"lora": {"layers_pattern": "layers"}}, "layers_to_transform"),
    ],
    ids=str,
)
def test_refuses(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told.replace("(", r"\(")):
        QuasarConfig(**wrong)


def test_every_field_has_a_docstring() -> None:
    import ast
    import inspect

    (tree,) = ast.parse(inspect.getsource(QuasarConfig)).body
    assert isinstance(tree, ast.ClassDef)
    for here, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(here, ast.AnnAssign):
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            assert told, ast.unparse(here)
