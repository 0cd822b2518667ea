"""The statistical framework: bias and variance of low-bit gradients, on a network and hardware of your own."""
