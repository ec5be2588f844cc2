import numpy as np
from keras import ops
from keras.src import testing


def assert_all_equal(self, actual, desired, msg=None):
    actual, desired = map(ops.convert_to_numpy, (actual, desired))
    np.testing.assert_array_equal(actual, desired, err_msg=msg or "")


# Before 3.14 that of Keras takes no arrays.
testing.TestCase.assertAllEqual = assert_all_equal
