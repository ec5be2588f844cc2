"""The class of Keras' preprocessing layers, which work in `tf.data`, too."""

import keras

# Keras exports what is derived from it alone. Up to 3.11 it is `TFDataLayer`.
DataLayer = keras.layers.Rescaling.__base__
