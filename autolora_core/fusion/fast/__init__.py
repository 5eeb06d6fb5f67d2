"""The gated sum without its branch outputs: statistics from small matrices, and one pass over the base's output.

``packed`` lays the LoRAs of a layer side by side, ``chunked`` is the torch path, ``triton_gate`` the GPU's,
``backward`` the gradients.
"""
