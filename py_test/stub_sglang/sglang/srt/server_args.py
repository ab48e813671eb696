"""Server arguments: the fields that the launcher reads or sets, under SGLang's names."""

import argparse
import dataclasses


@dataclasses.dataclass
class ServerArgs:
    model_path: str
    host: str = "127.0.0.1"
    port: int = 30000
    api_key: str | None = None
    dp_size: int = 1
    tp_size: int = 1
    pp_size: int = 1
    base_gpu_id: int = 0
    gpu_id_step: int = 1
    nnodes: int = 1
    node_rank: int = 0
    nccl_port: int | None = None
    grpc_port: int | None = None
    dist_init_addr: str | None = None
    disaggregation_mode: str = "null"
    disaggregation_bootstrap_port: int = 8998
    grpc_mode: bool = False
    smg_grpc_mode: bool = False
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    disable_radix_cache: bool = False

    def __post_init__(self) -> None:
        # Depends on the role, as in SGLang.
        self.disable_radix_cache = self.disable_radix_cache or self.disaggregation_mode == "decode"

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> None:
        for field in dataclasses.fields(ServerArgs):
            names = [f"--{field.name.replace('_', '-')}"]
            if field.name == "dp_size":
                names.insert(0, "--data-parallel-size")
            if field.type is bool:
                parser.add_argument(*names, action="store_true")
                continue
            required = field.default is dataclasses.MISSING
            kind = int if field.type in (int, int | None) else str
            default = None if required else field.default
            parser.add_argument(*names, dest=field.name, type=kind, default=default, required=required)

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> "ServerArgs":
        return cls(**{field.name: getattr(args, field.name) for field in dataclasses.fields(cls)})
