"""`python -m onnxpress`."""

from onnxpress.cli.main import main

if __name__ == "__main__":
    main()
