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
def test_what_is_imported_is_there(module, name):
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
def test_nothing_from_inside_keras_is_used_elsewhere(path):
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


def test_a_layer_without_weights_is_built_when_it_is_made(room):
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


def test_a_model_that_is_being_built_can_be_told(room):
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
    message = "A model does not keep its graph where it was kept."
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
        "The calls in a graph are not found from the input on."
    )
    assert calls[0].is_input and not calls[1].is_input, (
        "A call in a graph does not say whether it is an input."
    )
    assert calls[1].input_tensors == calls[1].arguments.keras_tensors, (
        "A call in a graph does not list what it takes."
    )
    assert calls[1].outputs[0] is calls[2].input_tensors[0], (
        "The calls in a graph do not share tensors."
    )
    assert room.origin(calls[1].outputs[0]) is model.get_layer("drop"), (
        "A tensor does not say which layer made it."
    )


def test_a_graph_runs_with_what_is_no_tensor(room, model):
    called = []

    def call(operation, *args, **kwargs):
        called.append(operation)
        return "something"

    found = room.run_through_graph(model, ["one"], lambda x: x, call)
    assert "something" in np.ravel(found) and len(called) == 3, (
        "A graph does not run with a function in place of its layers."
    )


def test_inputs_are_standardized(room, model):
    (x,) = room.standardize_inputs(model, np.ones((2, 3), "float64"))
    assert keras.backend.standardize_dtype(x.dtype) == "float32", (
        "A model does not cast what it is given to the dtype of its inputs."
    )
    with pytest.raises(ValueError):
        room.standardize_inputs(model, np.ones((2, 3, 4, 5)))


def test_masks_are_kept_with_tensors(room):
    x = layers.Masking()(np.array([[[1.0], [0.0]]], "float32"))
    mask = room.get_keras_mask(x)
    assert mask is not None and ops.convert_to_numpy(mask).tolist() == [
        [True, False]
    ], "The mask of a tensor is not kept with it."
    assert room.get_keras_mask(keras.Input((2,))) is None, (
        "A tensor without a mask has one."
    )


def test_the_layers_inside_a_layer(room):
    nested = layers.TimeDistributed(layers.TimeDistributed(layers.Dense(2)))
    assert room.layers_in(nested, False, recursive=False) == [nested.layer], (
        "The layers that a layer itself holds are found in another way."
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


def test_masks_come_from_a_generator_that_is_seeded(room):
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
def test_where_layers_draw(room, monkeypatch, name, layer):
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
        "The state of a layer is not in its attributes alone."
    )
    assert model(np.ones((1, 3))).shape == (1, 2), (
        "A model refers to something else than the object of its layer."
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
            "PyTorch does not find variables where it did."
        )


def test_a_layer_makes_what_is_inside_it(room):
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


def test_what_can_be_sliced(room):
    for x in (np.ones((4, 2)), [np.ones(4), np.ones(4)], {"a": np.ones(4)}):
        assert room.can_convert_arrays(x), (
            "`can_convert_arrays` takes arrays for something else."
        )
    assert not room.can_convert_arrays(iter([1])), (
        "`can_convert_arrays` takes an iterator for an array."
    )
    array = room.convert_to_sliceable(np.arange(4.0), target_backend="numpy")
    found = array.convert_to_numpy(array[np.array([2, 0])])
    assert np.asarray(found).tolist() == [2, 0], (
        "`convert_to_sliceable` does not pick examples by their numbers."
    )


def test_a_training_begins_with_another_epoch(room, model):
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


def test_what_a_model_was_compiled_with(room, model):
    assert room.compile_config(model) is None, (
        "A model that was not compiled says how."
    )
    loss = keras.losses.MeanSquaredError()
    model.compile("sgd", loss, metrics=["mae"])
    config = room.compile_config(model)
    assert config is not None and config["loss"] is loss, (
        "A model does not keep the objects that it was compiled with."
    )
    assert {"optimizer", "metrics", "weighted_metrics"} <= set(config), (
        "A model does not keep the arguments that it was compiled with."
    )


def test_what_an_optimizer_does_not_decay(room, model):
    optimizer = keras.optimizers.AdamW()
    assert room.not_decayed(optimizer, model.variables) == ([], None)
    kernel, bias = model.trainable_variables
    optimizer.exclude_from_weight_decay([bias], ["embedding"])
    found, patterns = room.not_decayed(optimizer, [kernel, bias])
    assert found == [bias] and patterns == ["embedding"], (
        "An optimizer does not say what was excluded from its weight decay."
    )


def test_the_place_of_a_variable_in_an_optimizer(room, model):
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
        "`EarlyStopping` no longer reads from `metric._direction` that more is "
        "better, as `CodeQuality` says by it."
    )


def test_what_a_copy_starts_with(room, model):
    model.compile("sgd", "mse")
    model.fit(np.ones((2, 3)), np.ones((2, 2)), verbose=0)
    state = room.initial_state(model)
    assert all(not state.get(name) for name in room.OF_TRAINING), (
        "The copy of a model starts with what training has set."
    )
    (dense,) = (x for x in room.layers_in(model) if type(x) is layers.Dense)
    state = room.initial_state(dense)
    lists = [state[x] for x in ("_inbound_nodes", "_outbound_nodes", "_losses")]
    assert dense._inbound_nodes and lists == [[], [], []], (
        "A layer does not keep its calls and losses where they were kept; a "
        "copy of it would start with them."
    )
    assert room.OF_PYTORCH not in state
    if keras.backend.backend() == "torch":
        assert room.OF_PYTORCH in dict(dense.named_children()), (
            "A layer lists its variables for PyTorch under another name."
        )
        assert room.OF_PYTORCH not in state["_modules"]


def test_the_tracker_of_a_layer(room):
    layer = layers.Dense(2)
    layer.build((None, 3))
    tracker = room.tracker_of(layer)
    assert tracker is not None, "A layer does not keep its tracker."
    before = tracker.stored_ids
    tracker.stored_ids = {}
    room.renew(tracker)
    assert tracker.stored_ids == before and any(before.values()), (
        "A tracker does not keep the ids of what it tracks where it did."
    )


def test_collections_that_track(room):
    layer = keras.Layer()
    layer.some, layer.named, layer.several = [1], {"a": 1}, {1}
    kinds = [
        room.COLLECTIONS.get(type(x))
        for x in (layer.some, layer.named, layer.several)
    ]
    assert kinds == [list, dict, set], (
        "Lists, dicts and sets of a layer are kept in other classes."
    )
    for value in (layer.some, layer.named, layer.several):
        assert value.tracker is room.tracker_of(layer), (
            "A collection does not say what it is tracked by."
        )


def test_a_layer_alone_is_frozen(room):
    layer = layers.TimeDistributed(layers.Dense(2))
    room.set_own_trainable(layer, False)
    assert not layer.trainable and layer.layer.trainable, (
        "What is set as `trainable` of a layer is not kept where it was."
    )
    assert room.own_trainable(layer) is False


def test_classes_that_are_built_like_a_functional_model(room):
    class Named(keras.Model):
        def __init__(self, units):
            super().__init__()

    assert room.functional_like_constructor(keras.Model), (
        "`functional_like_constructor` does not know `keras.Model`."
    )
    assert not room.functional_like_constructor(Named), (
        "`functional_like_constructor` takes any constructor for Keras'."
    )


def test_what_has_a_state_of_its_own(room):
    for value in (
        layers.Dense(2),
        keras.metrics.Mean(),
        keras.optimizers.SGD(),
        keras.losses.MeanSquaredError(),
    ):
        assert isinstance(value, room.KerasSaveable), (
            f"`{type(value).__name__}` is not derived from the class of what "
            "Keras saves."
        )
    assert isinstance(layers.Rescaling(1.0).backend, room.DynamicBackend), (
        "Preprocessing layers keep their backend in another class."
    )
