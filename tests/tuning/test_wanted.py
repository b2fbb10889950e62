"""What is measured is the model, whatever the recipe remembers."""

from __future__ import annotations

import yaml

from archiver import recipe
from tests.support import tiny_models
from tuning.settings import Inside, inside_config
from tuning.wanted import Wanted, archive


def test_nothing_is_remembered_where_it_is_measured_and_the_recipes_value_is_recommended(tmp_path):
    tiny_models.classifier(tmp_path / "model")
    (tmp_path / "model-config.yaml").write_text("handler: {task: text-classification, cache_bytes: 1000000}")
    (tmp_path / "recipe.yaml").write_text('name: tiny\nversion: "1.0"\n')
    found = recipe.read(recipe.Flags(recipe=tmp_path, archive_format="no-archive"))
    wanted = Wanted(found, [], "cpu", 1, 1, 1.0, 1, True, tmp_path, print)
    built = archive(wanted, found.config, tmp_path / "store")
    assert yaml.safe_load((built / "model-config.yaml").read_text())["handler"]["cache_bytes"] == 0
    assert inside_config(found.config, 1, Inside(512, 1)).handler.cache_bytes == 1_000_000
