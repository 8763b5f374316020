import os

# Before Triton is imported: kernels run in its interpreter, for there is no GPU to test on.
os.environ["TRITON_INTERPRET"] = "1"
