# SPDX-License-Identifier: Apache-2.0
"""What is known of CUDA: its functions, the files that hold them, kernels' names; calls to spans and points."""
