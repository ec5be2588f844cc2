import copy

import pytest

from keras_invdrop import InvariantDropout
from keras_invdrop.layers._dropout_by_shape import DropoutByShape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": None}, "`DropoutByShape`: .*missing.*'parts'"),
        ({"parts": 1}, "`parts`. Expected a list of `InvariantDropout`"),
        ({"parts": [0.5]}, "`parts`. Expected a list of `InvariantDropout`"),
        ({"parts": [{"rate": 2}]}, "`rate`. Expected a float"),
        ({"surprise": 1}, "DropoutByShape: {'surprise': 1}"),
    ],
)
def test_an_altered_config_is_refused(changes, message):
    layer = DropoutByShape([InvariantDropout(0.5)], [(None, 3)])
    config = layer.get_config() | changes
    config = {k: value for k, value in config.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        DropoutByShape.from_config(config)


def test_a_config_shares_nothing_with_its_layer():
    layer = DropoutByShape([InvariantDropout(0.5, shared_axes=1)], [(None, 3)])
    config = layer.get_config()
    assert copy.deepcopy(config) == config
    config["shapes"].append((None, 4))
    config["parts"][0]["shared_axes"].append(2)
    assert list(layer.shapes) == [(None, 3)]
    assert list(layer.parts[0].shared_axes) == [1]
