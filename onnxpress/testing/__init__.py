"""What every pass must pass, for the tests of passes in this and in other packages (needs pytest).

from onnxpress.testing import PassConformance

class TestMyPass(PassConformance):
    subject = MY_PASS
"""

from onnxpress.testing.conformance import PassConformance as PassConformance
