"""HunyuanImage-3.0: architecture, weights, KV cache and text generation of one checkpoint.

Imports neither the schedulers nor the step caches.

Names of tensors end in their shape, a letter for each axis:

    B  rows of a batch (image x guidance branch)     S  sequence positions
    T  tokens of all rows, flattened                 D  model width
    N  query heads                                   G  key/value heads
    H  width of a head                               V  vocabulary
    E  experts                                       K  experts per token
    F  width of an expert                            Z  any other width
    C  channels of a latent or feature map           M  groups of channels that share a norm
    t  frames                                        Y X  latent grid
    y x  pixel grid, or any grid inside the VAE      O I  outputs and inputs of a matrix
    Q  groups of columns that share a scale          R  recorded steps
    P  points of a curve

A digit is a literal size: `hidden_1SD`, `rgb_B3yx`. The suffix is the logical shape; it is the same
where a rank holds a shard. Parameters have the checkpoint's names, without a suffix.
"""
