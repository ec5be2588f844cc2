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
