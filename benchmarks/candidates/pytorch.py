"""PyTorch: the loop by autograd that everyone writes, and one by hand with every buffer reused."""

import math

import numpy as np

from benchmarks import data
from benchmarks.candidates import Candidate, Job, Refused

CHUNK = 1 << 20


class Torch(Candidate):
    package = "torch"
    openmp = True
    device = "cpu"

    def load(self) -> None:
        import torch

        self.torch = torch
        torch.set_num_threads(self.threads)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ImportError("torch sees no GPU")

    def tensor(self, array: np.ndarray):
        return self.torch.tensor(array, device=self.device)

    def finish(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()


class Autograd(Torch):
    def step(self, case: dict) -> Job:
        torch, (x, y), z = self.torch, data.problem(case), data.start(case)
        x, y = self.tensor(x), self.tensor(y)
        theta, u = self.tensor(z[:, :-1]), self.tensor(z[:, -1])
        theta.requires_grad_(), u.requires_grad_()
        alpha, lam, eta, m = case["alpha"], case["lam"], case["eta"], len(z)
        sigma = math.sqrt(2 * lam * eta) if case.get("noise", True) else 0.0

        def run() -> None:
            f = (alpha / m) * (torch.tanh(x @ theta.T) @ u)
            slopes = torch.autograd.grad(((f - y) ** 2).mean(), (theta, u))
            with torch.no_grad():
                for p, slope in zip((theta, u), slopes, strict=True):
                    p.mul_(1 - eta * lam).sub_(slope, alpha=m * eta)
                    if sigma:
                        p.add_(torch.randn_like(p), alpha=sigma)

        return Job(run, self.finish, lambda: np.column_stack([p.detach().cpu().numpy() for p in (theta, u)]))


class ByHand(Torch):
    def step(self, case: dict) -> Job:
        torch, (x, y), z = self.torch, data.problem(case), data.start(case)
        x, y = self.tensor(x), self.tensor(y)
        theta, u = self.tensor(z[:, :-1]).contiguous(), self.tensor(z[:, -1]).contiguous()
        alpha, lam, eta, (n, m) = case["alpha"], case["lam"], case["eta"], (len(x), len(z))
        sigma = math.sqrt(2 * lam * eta) if case.get("noise", True) else 0.0
        h, b = torch.empty((m, n), dtype=x.dtype, device=self.device), torch.empty_like(theta)
        draws, last = torch.empty_like(theta), torch.empty_like(u)

        def run() -> None:
            with torch.no_grad():
                torch.mm(theta, x.T, out=h)
                h.tanh_()
                c = (y - (alpha / m) * (u @ h)) * (2 * alpha / n)
                torch.mv(h, c, out=last)
                h.mul_(h)
                weighted = c[:, None] * x
                torch.addmm(weighted.sum(0), h, weighted, beta=1, alpha=-1, out=b)
                b.mul_(u[:, None])
                theta.mul_(1 - eta * lam).add_(b, alpha=eta)
                u.mul_(1 - eta * lam).add_(last, alpha=eta)
                if sigma:
                    theta.add_(draws.normal_(), alpha=sigma)
                    u.add_(last.normal_(), alpha=sigma)

        return Job(run, self.finish, lambda: np.column_stack([p.cpu().numpy() for p in (theta, u)]))

    def pairs(self, case: dict) -> Job:
        torch, z = self.torch, self.tensor(data.points(case))
        h2, m = case["scale"] ** 2, len(z)
        rows, half = max(1, CHUNK // m), 0.5 * (z * z).sum(1) / h2
        value, gradient = torch.empty(m, dtype=z.dtype, device=z.device), torch.empty_like(z)

        def run() -> None:
            for i in range(0, m, rows):
                part = slice(i, i + rows)
                k = torch.addmm(half, z[part], z.T, beta=-1, alpha=1 / h2).sub_(half[part, None]).exp_()
                value[part] = k.mean(1)
                gradient[part] = (k @ z / m - value[part, None] * z[part]) / h2

        return Job(run, self.finish, lambda: np.column_stack([value.cpu().numpy(), gradient.cpu().numpy()]))

    def gram(self, case: dict) -> Job:
        torch, (x, _), z = self.torch, data.problem(case), self.tensor(data.start(case))
        if case["n"] * case["m"] > 1 << 28:
            raise Refused("holds n x m arrays")
        x, out = self.tensor(x), None

        def run() -> None:
            nonlocal out
            h = torch.tanh(z[:, :-1] @ x.T)
            a = (1 - h * h) * z[:, -1:]
            out = ((a.T @ a) * (x @ x.T) + h.T @ h) / len(z)

        return Job(run, self.finish, lambda: out.cpu().numpy())

    def noise(self, case: dict) -> Job:
        out = self.tensor(np.empty((case["m"], case["D"]), case["dtype"]))
        return Job(out.normal_, self.finish)


class AutogradGPU(Autograd):
    device = "cuda"


class ByHandGPU(ByHand):
    device = "cuda"


CANDIDATES = {
    "PyTorch autograd": Autograd,
    "PyTorch by hand": ByHand,
    "PyTorch autograd, GPU": AutogradGPU,
    "PyTorch by hand, GPU": ByHandGPU,
}
