import keras
import numpy as np
import pytest
from keras_invdrop.applications import METHODS
from keras_invdrop.applications import cifar10_mlp
from keras_invdrop.applications import mas_mlp
from keras_invdrop.applications import mnist_mlp
from keras_invdrop.applications.recipes import Recipe

from keras_invdrop import InvariantDropout
from keras_invdrop import RunningAverageDropout

DENSE = 784 * 1000 + 1000 + 1000 * 1000 + 1000 + 1000 * 10 + 10


@pytest.mark.parametrize(
    ("dropout", "on_input", "on_hidden", "extra"),
    [
        ("none", None, None, 0),
        ("standard", keras.layers.Dropout, keras.layers.Dropout, 0),
        ("invariant", InvariantDropout, InvariantDropout, 784 + 1000 + 1000),
        ("invariant_input", InvariantDropout, keras.layers.Dropout, 784),
        ("invariant_hidden", keras.layers.Dropout, InvariantDropout, 2000),
        (
            "running_average",
            RunningAverageDropout,
            RunningAverageDropout,
            784 + 1000 + 1000,
        ),
    ],
)
def test_methods_of_table_2(dropout, on_input, on_hidden, extra):
    model = mnist_mlp(dropout)
    assert not model.compiled
    assert model.input_shape == (None, 784)
    assert model.output_shape == (None, 10)
    assert model.count_params() == DENSE + extra
    drops = [layer for layer in model.layers if layer.name.endswith("_dropout")]
    if on_input is None:
        assert drops == []
        return
    assert [type(layer) for layer in drops] == [on_input, on_hidden, on_hidden]
    assert [layer.rate for layer in drops] == [0.2, 0.5, 0.5]


def test_all_methods_are_tested():
    assert len(METHODS) == 6


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_activation_and_sizes(activation):
    model = mnist_mlp(
        activation=activation,
        hidden_units=(7, 6, 5),
        input_shape=(9,),
        classes=4,
        input_rate=0.1,
        hidden_rate=0.3,
    )
    dense = [x for x in model.layers if isinstance(x, keras.layers.Dense)]
    assert [layer.units for layer in dense] == [7, 6, 5, 4]
    names = [layer.activation.__name__ for layer in dense]
    assert names == [activation] * 3 + ["softmax"]
    assert model.get_layer("input_dropout").rate == 0.1
    assert model.get_layer("hidden_3_dropout").rate == 0.3
    outputs = model.predict(np.ones((2, 9)), verbose=0)
    np.testing.assert_allclose(outputs.sum(axis=1), 1, rtol=1e-5)


def test_logits():
    model = mnist_mlp(hidden_units=(3,), classifier_activation=None)
    assert model.layers[-1].activation is keras.activations.linear


def test_prior_and_max_norm():
    model = mnist_mlp(
        "invariant_hidden",
        hidden_units=(5, 5),
        beta_regularizer=keras.regularizers.L2(0.1),
        max_norm=0.5,
    )
    # One prior for each hidden layer's beta, none for the input.
    assert len(model.losses) == 2
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dense):
            assert layer.kernel_constraint.max_value == 0.5
            assert layer.kernel_constraint.axis == 0


def test_cifar10_mlp_by_hand():
    # 3072-2000-2000-10, on flattened images.
    dense = 3072 * 2000 + 2000 + 2000 * 2000 + 2000 + 2000 * 10 + 10
    assert cifar10_mlp("standard").count_params() == dense
    model = cifar10_mlp("invariant")
    assert model.count_params() == dense + 3072 + 2000 + 2000
    assert model.input_shape == (None, 32, 32, 3)
    assert model.name == "cifar10_mlp"


@pytest.mark.parametrize("build", [mnist_mlp, mas_mlp])
def test_outputs_have_32_bits_in_mixed_precision(build):
    recipe = Recipe(dtype_policy="mixed_bfloat16")
    model = recipe.network(build, dropout="none", width=0.05)
    assert model.output.dtype == "float32"
    assert model.layers[1].compute_dtype == "bfloat16"


def test_mas_mlp_by_hand():
    # 1014-1000, and three outcomes in each of four tissues.
    dense = 1014 * 1000 + 1000 + 1000 * 12 + 12
    assert mas_mlp("none").count_params() == dense
    assert mas_mlp("standard").count_params() == dense
    assert mas_mlp("invariant").count_params() == dense + 1014 + 1000
    model = mas_mlp(width=0.01, tissues=5, input_shape=(7,))
    outputs = model.predict(np.ones((2, 7)), verbose=0)
    assert outputs.shape == (2, 5, 3)
    np.testing.assert_allclose(outputs.sum(axis=-1), 1, rtol=1e-5)
    logits = mas_mlp(width=0.01, classifier_activation=None)
    assert logits.layers[-1].activation is keras.activations.linear


@pytest.mark.parametrize("build", [mnist_mlp, cifar10_mlp, mas_mlp])
def test_width(build):
    model = build(width=0.25, hidden_units=(10, 6))
    # Python rounds a half to the even number: 2.5 and 1.5 both to 2.
    assert model.get_layer("hidden_1").units == 2
    assert model.get_layer("hidden_2").units == 2
    with pytest.raises(
        ValueError, match="`width`. Expected .* 10 times 0.04 rounds to 0"
    ):
        build(width=0.04, hidden_units=(10,))
    with pytest.raises(ValueError, match="`width`. Expected a finite float"):
        build(width=0)


def test_one_max_norm_for_each_layer():
    model = mnist_mlp(hidden_units=(3, 4), max_norm=(0.9, 1.5, 2))
    names = ("hidden_1", "hidden_2", "classifier")
    norms = [model.get_layer(n).kernel_constraint.max_value for n in names]
    assert norms == [0.9, 1.5, 2]
    with pytest.raises(ValueError, match="`max_norm`. Expected .* of 3 layers"):
        mnist_mlp(hidden_units=(3, 4), max_norm=(0.9, 1.5))
