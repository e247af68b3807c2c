"""Training runs in processes of their own, forked from one that has imported everything: they start at once."""

import multiprocessing
import os
import socket

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "accelerate",
        "diffusers.models.unets.unet_2d_condition",
        "transformers.models.clip.modeling_clip",
        "t2l.training.train_autoencoder",
        "t2l.training.train_unet",
        __name__,
    ]
)


class Launched:
    """A function on one or several processes, as torchrun would start them. cards: each has one; else they have the
    CPU.
    """

    def __init__(self, count, function, *arguments, cards=False):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = [
            CONTEXT.Process(target=_run, args=(rank, count, port, function, arguments, cards)) for rank in range(count)
        ]
        for process in self.processes:
            process.start()

    @property
    def alive(self):
        return all(process.is_alive() for process in self.processes)

    def kill(self):
        """SIGKILL to all of them."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def wait(self):
        for process in self.processes:
            process.join()
        assert all(process.exitcode == 0 for process in self.processes)


def write_what_is_raised(path, function, *arguments):
    """Run a function whose error is the point."""
    try:
        function(*arguments)
    except (Exception, KeyboardInterrupt) as error:
        path.write_text(f"{type(error).__name__}: {error}")


def normalize_a_share(folder):
    """BatchNorm's output, running statistics and gradients on this process's share of a batch in float64."""
    import torch

    from t2l.training.processes import Processes

    processes = Processes()
    norm, x, factor = batchnorm_and_batch()
    norm, share = torch.nn.Sequential(norm), list(processes.local_indices(len(x), 1))
    processes.synchronize_batchnorm(norm)
    x = x[share].requires_grad_()
    y = norm(x)
    (y * factor[share]).sum().mul(
        processes.world_size
    ).backward()  # the loss is the mean over processes of what each has
    gradients = [processes.mean(p.grad) for p in norm.parameters()]
    result = {"y": y.detach(), "x": x.grad / processes.world_size, "norm": norm.state_dict(), "gradients": gradients}
    torch.save(result, folder / f"{processes.rank}.pt")


def batchnorm_and_batch():
    import torch

    generator = torch.Generator().manual_seed(0)
    x, factor = (torch.randn(4, 3, 5, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    norm = torch.nn.BatchNorm2d(3, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight, generator=generator)
    return norm, 2 * x + 3, factor


def train_a_discriminator(path):
    """Two steps of the PatchGAN on pictures of noise."""
    import torch

    from t2l.model.discriminator import DiscriminatorConfig, PatchDiscriminator
    from t2l.training.configs import LoopConfig
    from t2l.training.loop import make_optimizer
    from t2l.training.processes import Processes
    from t2l.training.train_autoencoder import Adversary
    from t2l.training.update import Updater

    torch.manual_seed(0)
    processes, discriminator = Processes(), PatchDiscriminator(DiscriminatorConfig(base_channels=8))
    processes.synchronize_batchnorm(discriminator)
    config = LoopConfig(num_steps=2, lr=1e-3, adam_eps=1e-4, betas=(0.5, 0.9))
    optimizer = make_optimizer(discriminator.parameters(), config)
    update = Updater(Adversary(discriminator), optimizer, config, processes)
    pictures = torch.rand(2, 4, 3, 32, 32)[:, list(processes.local_indices(4, 1))]
    for _ in range(2):
        for part in update.micro_batches(pictures.shape[1]):
            loss = update.network(pictures[0, part], pictures[1, part])
            update.backward(loss)
        update.step(loss.detach(), clip=False)
    if processes.is_main:
        torch.save(discriminator.state_dict(), path)


def _run(rank, count, port, function, arguments, cards):
    import torch

    torch.set_num_threads(1)
    if not cards:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if count > 1:
        numbers = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            "MASTER_PORT": port,
        }
        os.environ |= {name: str(value) for name, value in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}
        os.environ["OMP_NUM_THREADS"] = "1"
    function(*arguments)
