INTERFACE: int

def forward(
    step: bytes,
    owners: object,
    rows: int,
    pre: int,
    gates: int,
    c_before: int,
    c: int,
    h: int,
    /,
) -> None: ...
def backward(
    step: bytes,
    owners: object,
    rows: int,
    dh: int,
    dc: int,
    gates: int,
    c_before: int,
    c: int,
    dgates: int,
    /,
) -> None: ...
def levels() -> tuple[str, ...]: ...
def use(level: str, /) -> str: ...
