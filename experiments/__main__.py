"""The command `keras-invdrop`, as `python -m keras_invdrop.experiments`."""

from keras_invdrop_command import main

if __name__ == "__main__":
    main()
