import json

import pytest

from model.config_file import parse_config
from model.loading.build import build_skeleton
from model.loading.weight_map import list_slots
from tests.conftest import GOLDEN


@pytest.mark.parametrize("file", ["model/config.json", "real_config_distil.json"])
def test_the_tower_that_is_not_built_has_the_names_and_shapes_of_the_one_that_is(file: str) -> None:
    fields = json.loads((GOLDEN / file).read_text())
    config = parse_config(
        {k: v for k, v in fields.items() if k not in ("cfg_distilled", "use_meanflow")}
    )
    with_tower = list_slots(build_skeleton(config, has_vision=True))
    without = list_slots(build_skeleton(config))
    assert {k: t.shape for k, t in with_tower.items()} == {k: t.shape for k, t in without.items()}
