"""The traced modules in torch, before ONNX: each against what it stands for."""

import numpy as np
import pytest
import torch

from medqua.core.model import TinyArchitecture, load_backbone
from medqua.core.quantum.bottleneck import VariationalBottleneck
from medqua.core.quantum.noise import NoiseModel
from medqua.core.vision.patches import cut
from medqua.core.vision.processor import patch_spec
from medqua.serve.export.graphs import TableBottleneck, VisionGraph
from medqua.serve.inference.geometry import Geometry, vision_tables


@pytest.mark.parametrize("whole", [(1,), (0, 1, 2), ()])
@pytest.mark.parametrize("size", [(112, 112), (84, 140), (56, 56)])
def test_vision_in_windows_is_the_original_tower(whole: tuple[int, ...], size):
    sizes = TinyArchitecture(vision_depth=3, vision_hidden=16, vision_heads=2, vision_mlp=16)
    backbone = load_backbone(architecture=sizes, seed=1)
    tower = backbone.model.base_model.visual
    tower.fullatt_block_indexes, tower.window_size = list(whole), 2 * 28
    tower.config.window_size, tower.config.fullatt_block_indexes = 2 * 28, list(whole)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.mul_(3.0)
    spec = patch_spec(backbone.processor.image_processor)
    images = np.random.default_rng(0).random((2, *size), dtype=np.float32)
    rows, columns = spec.grid(*size)
    patches = torch.from_numpy(cut(images, spec))
    tables = vision_tables(rows, columns, Geometry(spec.merge, 2 if len(whole) < 3 else 0, 0, 0))
    inputs = {name: torch.from_numpy(value) for name, value in tables.feeds().items()}
    with torch.inference_mode():
        ours = VisionGraph(tower)(patches, **inputs)
        grid = torch.tensor([[1, rows, columns]] * 2)
        theirs = tower(patches.flatten(0, 1), grid).pooler_output
    torch.testing.assert_close(ours.flatten(0, 1), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("n_qubits", [2, 3, 5])
@pytest.mark.parametrize("noise", [None, {"one_qubit": 0.01, "two_qubit": 0.03, "readout": 0.02}])
def test_table_in_a_graph_is_the_circuit(n_qubits: int, noise):
    model = None if noise is None else NoiseModel.from_dict(noise)
    circuit = VariationalBottleneck(n_qubits, 3, noise=model).eval()
    random = torch.Generator().manual_seed(n_qubits)
    angles = 3 * torch.randn(40, n_qubits, generator=random)
    depth = torch.randint(0, 4, (40,), generator=random)
    with torch.inference_mode():
        expected = circuit(angles, depth)
        table = TableBottleneck(circuit)
        torch.testing.assert_close(table(angles, depth), expected, atol=2e-6, rtol=0)
        assert table(angles[:0], depth[:0]).shape == (0, n_qubits)
