import tomllib

import pytest

from medqua.core.errors import ConfigError
from medqua.train.data.sections import DATA_KINDS
from medqua.train.recipe import build_recipe, load_recipe, shipped_recipes


def test_a_recipe_for_each_kind_of_data_and_two_experiments_are_shipped():
    expected = {*DATA_KINDS, "reproduce", "reproduce-radiographs"}
    assert expected <= set(shipped_recipes())


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_is_valid_and_survives_its_own_dict(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    others = {"reproduce": "mimic", "reproduce-radiographs": "folder", "report": "mimic"}
    kind = others.get(name, name)
    assert getattr(recipe.data, "kind", None) == kind
    assert build_recipe(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("optim.epochs=5", lambda r: r.optim.epochs == 5.0),
        ("optim.head=3e-4", lambda r: r.optim.head == 3e-4),
        ("optim.balance=true", lambda r: r.optim.balance is True),
        ("data.views=AP", lambda r: r.data.views == ("AP",)),
        ("data.views=AP,PA", lambda r: r.data.views == ("AP", "PA")),
        ('data.views=["AP", "LATERAL"]', lambda r: r.data.views == ("AP", "LATERAL")),
        ("data.views=", lambda r: r.data.views == ()),
        ("data.root=/data/my=folder", lambda r: r.data.root == "/data/my=folder"),
        ('data.root="quoted"', lambda r: r.data.root == "quoted"),
        ("data.root=123", lambda r: r.data.root == "123"),
        ("data.label_source=negbio", lambda r: r.data.label_source == "negbio"),
        ("data.phantoms.patients=50", lambda r: r.data.phantoms.patients == 50),
        ("backbone.tiny.hidden=64", lambda r: r.backbone.tiny.hidden == 64),
        ("adapter.blocks=last", lambda r: r.adapter.blocks == "last"),
        ("adapter.blocks=[2, 4]", lambda r: tuple(r.adapter.blocks) == (2, 4)),
        ("adapter.blocks=none", lambda r: r.adapter.blocks is None),
        ("adapter.threshold_range=[0.1, 0.9]", lambda r: r.adapter.threshold_range == (0.1, 0.9)),
        ("image.fit=crop", lambda r: r.image.fit == "crop"),
    ],
)
def test_an_override_is_read_as_the_type_of_its_key(override, read):
    assert read(load_recipe("mimic", [override]))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.epoch=3", "did you mean 'optim.epochs'"),
        ("epochs=3", "did you mean 'optim.epochs'"),
        ("data.phantoms.patient=3", "did you mean 'data.phantoms.patients'"),
        ("data.download=true", "unknown key 'data.download'"),
        ("adapter.peft_type=LORA", "unknown key"),
        ("optim.epochs=many", "needed a number"),
        ("optim.batch_size=2.5", "needed a whole number"),
        ("optim.batch_size=true", "needed a whole number"),
        ("optim.balance=yes", "needed true or false"),
        ("optim.schedule=cosin", "did you mean 'cosine'"),
        ("data.uncertain=one", "did you mean 'ones'"),
        ("optim=3", "it is a section"),
        ("optim.epochs", "write key=value"),
        ("=3", "write key=value"),
        ("name.x=3", "is a value, not a section"),
        ("adapter.every=7", "leaves no layer adapted"),
        ("adapter.n_qubits=1", "at least 2"),
        ("adapter.rank=0", "at least 1"),
        ("image.size=200", "multiple of 28"),
        ("image.size=none", "image.size is not given"),
        ("optim.epochs=0", "more than 0"),
        ("optim.micro_batch_size=5", "no multiple"),
        ("data.workers=2", "data.keep_in_memory"),
        ("data.image_root=x", r"data\.root"),
        ("data.source=dicom", r"data\.phantoms\.dicom=true"),
        ("data.labels=", "at least one label"),
        ("evaluation.confidence=1", "confidence"),
        ("run.threads=-1", "at least 0"),
        ("data.kind=padchest", "needed one of mimic, chestmnist, folder, nih, chexpert, vindr"),
    ],
)
def test_a_wrong_override_is_refused_with_what_to_do(override, words):
    with pytest.raises(ConfigError, match=words):
        load_recipe("mimic", ["backbone.source=tiny", override])


def test_a_recipe_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[data]\nkind = "folder"\nroot = "x"\nfractions.test = 0.3\n[optim]\nepochs = 2\n'
    )
    recipe = load_recipe(path, ["optim.epochs=4"])
    assert (recipe.name, recipe.data.root, recipe.optim.epochs) == ("mine", "x", 4.0)
    path.write_text("[data\n")
    with pytest.raises(ConfigError, match="no TOML"):
        load_recipe(path)
    with pytest.raises(ConfigError, match="chestmnist, chexpert, folder, mimic"):
        load_recipe("mimc")


def test_shipped_recipes_are_plain_toml():
    for path in shipped_recipes().values():
        assert "data" in tomllib.loads(path.read_text())
