# pragma version ~=0.4.3
import packed


@external
@pure
def weighted(opened: Bytes[512], groups: uint256) -> int256:
    return packed.weighted(opened, groups)


@external
@pure
def product(opened: Bytes[512], count: uint256) -> int256:
    return packed.product(opened, count)
