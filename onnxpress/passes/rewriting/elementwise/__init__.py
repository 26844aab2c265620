"""Functions of single numbers: activations in any spelling, and the kernels that compute them."""
