"""The parts of Keras that Keras may change are still as the library needs.

Each test fails with a sentence that says what a release of Keras has changed
and what depends on it. The first tests work even if the library cannot be
imported.
"""

import ast
import importlib
import importlib.util
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

# Only located, not imported: the import itself may fail.
PACKAGE = Path(importlib.util.find_spec("keras_invdrop").origin).parent
ROOM = PACKAGE / "_keras.py"
SOURCES = [
    path
    for folder in ("keras_invdrop", "applications", "experiments")
    for path in sorted((PACKAGE.parent / folder).rglob("*.py"))
    if path != ROOM
]


def imports(path):
    """The names that a file imports from inside Keras, each with its module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                if f"{node.module}.{alias.name}".startswith("keras.src"):
                    yield node.module, alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("keras.src"):
                    yield alias.name, None


@pytest.mark.parametrize(("module", "name"), imports(ROOM))
def test_imported_names_exist(module, name):
    try:
        found = importlib.import_module(module)
    except ImportError:
        pytest.fail(f"Keras {keras.__version__} has no module `{module}`.")
    if not hasattr(found, name):
        try:
            importlib.import_module(f"{module}.{name}")
        except ImportError:
            pytest.fail(
                f"Keras {keras.__version__} has no `{name}` in `{module}`."
            )


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def own_names(tree):
    """The names of attributes and methods that a file's classes define."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from (getattr(x, "name", None) for x in node.body)
    set_here, read_here = (
        {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.ctx, context)
            and ast.unparse(node.value) == "self"
        }
        for context in (ast.Store, ast.Load)
    )
    # What a class sets and never reads, a class of Keras may read.
    yield from set_here & read_here


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_other_files_use_no_private_names_of_keras(path):
    found = [f"`{module}`" for module, _ in imports(path)]
    tree = ast.parse(path.read_text())
    own = {*own_names(tree), "_replace"}  # of a named tuple
    found += [
        f"`{ast.unparse(x)}`"
        for x in ast.walk(tree)
        if isinstance(x, ast.Attribute)
        and is_private(x.attr)
        and x.attr not in own
        # TorchDynamo, `os._exit` and similar names are not those of Keras.
        and not ast.unparse(x).startswith(("torch.", "os."))
    ]
    found += [
        f"`{ast.unparse(x)}`"
        for x in ast.walk(tree)
        if isinstance(x, ast.Call)
        and ast.unparse(x.func) in ("getattr", "hasattr", "setattr")
        and isinstance(x.args[1], ast.Constant)
        and is_private(x.args[1].value)
    ]
    assert not found, (
        f"{path.name} uses {', '.join(found)}, which Keras does not promise: "
        "such uses belong in _keras.py."
    )


@pytest.fixture
def room():
    return importlib.import_module("keras_invdrop._keras")


def inner_model():
    inputs = keras.Input((3,), name="inner")
    return keras.Model(inputs, layers.Dense(2, name="dense")(inputs))


@pytest.fixture
def model():
    """Layers, an operation and a nested model."""
    inputs = keras.Input((3,), name="given")
    x = layers.Dropout(0.5, name="drop")(inputs)
    x = inner_model()(ops.abs(x))
    return keras.Model(inputs, x)


def test_the_class_of_preprocessing_layers(room):
    for layer in (layers.Rescaling, layers.Normalization, layers.RandomFlip):
        assert issubclass(layer, room.DataLayer), (
            f"`{layer.__name__}` and `Rescaling` have no base class in common, "
            "from which the library derives its preprocessing layers."
        )
    assert not issubclass(layers.Dense, room.DataLayer), (
        "The base class of `Rescaling` is one of every layer."
    )
    for name in ("convert_weight", "__call__"):
        assert name in vars(room.DataLayer), (
            f"The base class of `Rescaling` has no `{name}` of its own."
        )
    assert hasattr(room.DataLayer(), "backend"), (
        "Preprocessing layers have no attribute `backend`."
    )


def test_a_layer_without_weights_is_built_at_construction(room):
    class Plain(keras.Layer):
        def __init__(self):
            super().__init__()
            room.build_at_init(self)

    class WithBuild(Plain):
        def build(self, input_shape):
            self.weight = self.add_weight()

    assert Plain().built, (
        "`_build_at_init` does not build a layer that has no weights."
    )
    assert not WithBuild().built, (
        "`_build_at_init` builds a layer whose class has its own `build`, "
        "which is then never called."
    )


def test_building_a_model_is_in_a_symbolic_scope(room):
    seen = []

    class Probe(keras.Layer):
        def call(self, inputs):
            seen.append(room.in_symbolic_scope())
            return inputs

    probe = Probe()
    probe(keras.Input((2,)))
    probe(np.ones((1, 2)))
    # Some releases call a layer twice to build a model.
    assert all(seen[:-1]) and seen[-2:] == [True, False], (
        "`in_symbolic_scope` does not tell whether a call builds a model; "
        "`ZCAWhitening` may refuse to be put into one."
    )


def test_the_graph_of_a_model(room, model):
    sequential = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    message = "`graph_of` no longer finds the graph of a model."
    assert room.graph_of(model) is model, message
    assert room.graph_of(layers.Dense(2)) is None, message
    assert room.graph_of(keras.Sequential([layers.Dense(2)])) is None, message
    graph = room.graph_of(sequential)
    assert isinstance(graph, room.Functional), message
    names = [operation.name for operation in room.operations(model)]
    assert set(names) >= {"given", "drop"} and len(names) == 4, (
        "A graph does not list its layers and operations."
    )
    calls = list(room.nodes(model))
    assert [call.operation.name for call in calls[:2]] == ["given", "drop"], (
        "`nodes` no longer lists the calls in a graph from the input on."
    )
    assert calls[0].is_input and not calls[1].is_input, (
        "A call in a graph does not say whether it is an input."
    )
    assert calls[1].input_tensors == calls[1].arguments.keras_tensors, (
        "A call in a graph no longer lists its inputs."
    )
    assert calls[1].outputs[0] is calls[2].input_tensors[0], (
        "The calls in a graph do not share tensors."
    )
    assert room.origin(calls[1].outputs[0]) is model.get_layer("drop"), (
        "A tensor does not say which layer made it."
    )


def test_a_graph_runs_on_objects_other_than_tensors(room, model):
    called = []

    def call(operation, *args, **kwargs):
        called.append(operation)
        return "something"

    found = room.run_through_graph(model, ["one"], lambda x: x, call)
    assert "something" in np.ravel(found) and len(called) == 3, (
        "A graph no longer runs with a function in place of its layers."
    )


def test_inputs_are_standardized(room, model):
    (x,) = room.standardize_inputs(model, np.ones((2, 3), "float64"))
    assert keras.backend.standardize_dtype(x.dtype) == "float32", (
        "A model does not cast what it is given to the dtype of its inputs."
    )
    with pytest.raises(ValueError):
        room.standardize_inputs(model, np.ones((2, 3, 4, 5)))


def test_tensors_carry_masks(room):
    x = layers.Masking()(np.array([[[1.0], [0.0]]], "float32"))
    mask = room.get_keras_mask(x)
    assert mask is not None and ops.convert_to_numpy(mask).tolist() == [
        [True, False]
    ], "A tensor no longer carries its mask."
    assert room.get_keras_mask(keras.Input((2,))) is None, (
        "`get_keras_mask` returns a mask for a tensor without one."
    )


def test_the_layers_inside_a_layer(room):
    nested = layers.TimeDistributed(layers.TimeDistributed(layers.Dense(2)))
    assert room.layers_in(nested, False, recursive=False) == [nested.layer], (
        "`_flatten_layers` no longer lists the layers directly inside a layer."
    )
    layer = layers.TimeDistributed(layers.Dropout(0.5, seed=1))
    found = room.layers_in(layer)
    assert found == [layer, layer.layer], (
        "A layer does not list itself and the layers inside it."
    )
    assert room.layers_in(layer, include_self=False) == [layer.layer]
    assert room.seed_generators(layer.layer) == [layer.layer.seed_generator], (
        "A layer does not list its own generators."
    )
    assert room.seed_generators(layer) == [], (
        "A layer lists the generators of those inside it: `MonteCarlo` would "
        "seed them twice."
    )


def test_a_seeded_generator_determines_masks(room):
    generator = keras.random.SeedGenerator()
    room.seeded(generator)
    masks = []
    for _ in range(2):
        generator.state.assign([1, 0])
        mask = keras.random.dropout(ops.ones((64,)), 0.5, seed=generator)
        masks.append(ops.convert_to_numpy(mask))
    assert np.array_equal(*masks), (
        "A generator without a seed no longer draws from its state: "
        "`MonteCarlo(seed=...)` would not repeat its masks."
    )


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("dropout", layers.Dropout(0.5)),
        ("dropout", layers.SpatialDropout1D(0.5)),
        ("dropout", layers.LSTM(2, dropout=0.5)),
        ("normal", layers.GaussianDropout(0.5)),
        ("uniform", layers.AlphaDropout(0.5)),
        ("uniform", lambda x, training: keras.random.uniform(x.shape)),
        ("normal", lambda x, training: keras.random.normal(x.shape)),
        ("dropout", lambda x, training: keras.random.dropout(x, 0.5)),
    ],
)
def test_layers_draw_by_the_functions_of_the_backend(
    room, monkeypatch, name, layer
):
    calls = []
    draw = getattr(room.random_functions, name)

    def drawn(*args, **kwargs):
        calls.append(name)
        return draw(*args, **kwargs)

    monkeypatch.setattr(room.random_functions, name, drawn)
    layer(ops.ones((2, 3, 4)), training=True)
    assert calls, (
        f"A layer no longer draws from `{name}` of the backend: in a file of "
        "`export(stochastic=True)` its masks would not be new in every run."
    )


def test_a_layer_becomes_another(room):
    old, new = layers.Dropout(0.5), layers.Dense(2)
    model = keras.Sequential([keras.Input((3,)), old])
    new.build((None, 3))
    kernel = new.kernel
    room.become(old, new)
    assert type(old) is layers.Dense and old.kernel is kernel, (
        "The attributes of a layer no longer hold its whole state."
    )
    assert model(np.ones((1, 3))).shape == (1, 2), (
        "A model no longer calls the object of its layer, which `become` turns "
        "into another layer."
    )
    assert model.trainable_weights == new.trainable_weights


def test_variables_are_listed_again_for_pytorch(room):
    inner, new = layers.Dropout(0.5), layers.Dense(2)
    outer = layers.TimeDistributed(inner)
    outer.build((None, 3, 4))
    new.build((None, 4))
    room.become(inner, new)
    room.list_again_for_pytorch(outer)
    if keras.backend.backend() == "torch":
        assert len([*outer.parameters()]) == 2, (
            "`_track_variables` no longer registers variables with PyTorch."
        )


def test_a_call_builds_inner_layers(room):
    class Outer(layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = layers.MultiHeadAttention(1, 2)

        def call(self, inputs):
            return self.inner(inputs, inputs)

    layer = Outer()
    layer.build((None, 3, 4))
    assert not layer.inner.built
    room.build_by_call(layer)
    assert layer.inner.built, (
        "A layer without a `build` of its own cannot be built from its shape."
    )


def test_arrays_can_be_sliced(room):
    for x in (np.ones((4, 2)), [np.ones(4), np.ones(4)], {"a": np.ones(4)}):
        assert room.can_convert_arrays(x), (
            "`can_convert_arrays` rejects arrays."
        )
    assert not room.can_convert_arrays(iter([1])), (
        "`can_convert_arrays` accepts an iterator."
    )
    array = room.convert_to_sliceable(np.arange(4.0), target_backend="numpy")
    found = array.convert_to_numpy(array[np.array([2, 0])])
    assert np.asarray(found).tolist() == [2, 0], (
        "`convert_to_sliceable` no longer selects examples by their indices."
    )


def test_fit_begins_at_the_initial_epoch(room, model):
    class From2(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            room.set_initial_epoch(self.model, 2)
            assert room.initial_epoch(self.model) == 2

    model.compile(loss="mse")
    epochs = model.fit(
        np.ones((2, 3)),
        np.ones((2, 2)),
        epochs=4,
        verbose=0,
        callbacks=[From2()],
    ).epoch
    assert epochs == [2, 3], (
        "`model.fit` no longer takes its first epoch from "
        "`model._initial_epoch`, by which `ExactResume` goes on."
    )


def test_a_model_keeps_its_arguments_of_compile(room, model):
    assert room.compile_config(model) is None, (
        "`compile_config` returns arguments for an uncompiled model."
    )
    loss = keras.losses.MeanSquaredError()
    model.compile("sgd", loss, metrics=["mae"])
    config = room.compile_config(model)
    assert config is not None and config["loss"] is loss, (
        "A model no longer keeps the objects that it was compiled with."
    )
    assert {"optimizer", "metrics", "weighted_metrics"} <= set(config), (
        "A model no longer keeps the arguments that it was compiled with."
    )


def test_exclusions_from_weight_decay(room, model):
    optimizer = keras.optimizers.AdamW()
    assert room.not_decayed(optimizer, model.variables) == ([], None)
    kernel, bias = model.trainable_variables
    optimizer.exclude_from_weight_decay([bias], ["embedding"])
    found, patterns = room.not_decayed(optimizer, [kernel, bias])
    assert found == [bias] and patterns == ["embedding"], (
        "`not_decayed` no longer finds what was excluded from weight decay."
    )


def test_the_index_of_a_variable_in_an_optimizer(room, model):
    optimizer = keras.optimizers.SGD(momentum=0.9)
    optimizer.build(model.trainable_variables)
    places = [
        room.variable_index(optimizer, variable)
        for variable in model.trainable_variables
    ]
    assert places == [0, 1], (
        "An optimizer no longer finds a variable by `_get_variable_index`, "
        "by which `RampedSGD` finds its momentum."
    )


def test_the_direction_of_a_metric(room, model):
    metric = keras.metrics.MeanSquaredError("found")
    room.set_direction(metric, "up")
    stopping = keras.callbacks.EarlyStopping("found")
    model.compile(loss="mse", metrics=[metric])
    x, y = np.ones((2, 3)), np.ones((2, 2))
    model.fit(x, y, verbose=0, callbacks=[stopping])
    assert stopping.monitor_op is ops.greater, (
        "`EarlyStopping` no longer reads `metric._direction`, by which "
        "`CodeQuality` says that more is better."
    )


def test_which_values_of_a_metric_are_better(room, model):
    model.compile(loss="mse", metrics=[keras.metrics.R2Score()])
    x, y = np.ones((2, 3)), np.ones((2, 2))
    model.fit(x, y, verbose=0)
    found = room.better("val_r2_score", model), room.better("loss", model)
    assert found == ("max", "min"), (
        "`EarlyStopping._set_monitor_op` no longer finds out which values are "
        "better, which `BestEpoch` needs to know."
    )
    with pytest.raises(ValueError, match="mine"):
        room.better("mine", model)


def test_the_initial_state_of_a_copy(room, model):
    model.compile("sgd", "mse")
    model.fit(np.ones((2, 3)), np.ones((2, 2)), verbose=0)
    state = room.initial_state(model)
    assert all(not state.get(name) for name in room.OF_TRAINING), (
        "The copy of a model starts with attributes that training has set."
    )
    (dense,) = (x for x in room.layers_in(model) if type(x) is layers.Dense)
    state = room.initial_state(dense)
    lists = [state[x] for x in ("_inbound_nodes", "_outbound_nodes", "_losses")]
    assert dense._inbound_nodes and lists == [[], [], []], (
        "A layer no longer keeps its calls and losses in the attributes of "
        "`EMPTY`; its copy would start with them."
    )
    assert room.OF_PYTORCH not in state
    if keras.backend.backend() == "torch":
        assert room.OF_PYTORCH in dict(dense.named_children()), (
            "`_torch_params` no longer lists a layer's variables for PyTorch."
        )
        assert room.OF_PYTORCH not in state["_modules"]


def test_the_tracker_of_a_layer(room):
    layer = layers.Dense(2)
    layer.build((None, 3))
    tracker = room.tracker_of(layer)
    assert tracker is not None, "A layer no longer has a `_tracker`."
    before = tracker.stored_ids
    tracker.stored_ids = {}
    room.renew(tracker)
    assert tracker.stored_ids == before and any(before.values()), (
        "A tracker no longer keeps the ids of its elements in `stored_ids`."
    )


def test_collections_are_tracked(room):
    layer = keras.Layer()
    layer.some, layer.named, layer.several = [1], {"a": 1}, {1}
    kinds = [
        room.COLLECTIONS.get(type(x))
        for x in (layer.some, layer.named, layer.several)
    ]
    assert kinds == [list, dict, set], (
        "A layer no longer turns lists, dicts and sets into `COLLECTIONS`."
    )
    for value in (layer.some, layer.named, layer.several):
        assert value.tracker is room.tracker_of(layer), (
            "A collection no longer has its layer's tracker in `tracker`."
        )


def test_freezing_a_layer_without_its_inner_layers(room):
    layer = layers.TimeDistributed(layers.Dense(2))
    room.set_own_trainable(layer, False)
    assert not layer.trainable and layer.layer.trainable, (
        "`_trainable` no longer holds the layer's own `trainable`."
    )
    assert room.own_trainable(layer) is False


def test_constructors_like_that_of_a_functional_model(room):
    class Named(keras.Model):
        def __init__(self, units):
            super().__init__()

    assert room.functional_like_constructor(keras.Model), (
        "`functional_like_constructor` rejects `keras.Model`."
    )
    assert not room.functional_like_constructor(Named), (
        "`functional_like_constructor` accepts a constructor unlike Keras'."
    )


def test_base_classes_of_objects_with_state(room):
    for value in (
        layers.Dense(2),
        keras.metrics.Mean(),
        keras.optimizers.SGD(),
        keras.losses.MeanSquaredError(),
    ):
        assert isinstance(value, room.KerasSaveable), (
            f"`{type(value).__name__}` no longer derives from `KerasSaveable`."
        )
    assert isinstance(layers.Rescaling(1.0).backend, room.DynamicBackend), (
        "A preprocessing layer's `backend` is no longer a `DynamicBackend`."
    )
