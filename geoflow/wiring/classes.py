"""Group sites into classes that move together."""


class Classes:
    """Union-find over sites. A class is free or pinned."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.pinned: set[int] = set()
        self.joined: dict[int, list[int]] = {}  # the sites of each class of several

    def add(self) -> None:
        self.parent.append(len(self.parent))

    def members(self, site: int) -> list[int]:
        root = self.root(site)
        return self.joined.get(root, [root])

    def root(self, site: int) -> int:
        while self.parent[site] != site:
            self.parent[site] = self.parent[self.parent[site]]
            site = self.parent[site]
        return site

    def tie(self, a: int, b: int) -> None:
        a, b = sorted((self.root(a), self.root(b)))
        if a == b:
            return
        self.parent[b] = a
        self.joined.setdefault(a, [a]).extend(self.joined.pop(b, [b]))
        if b in self.pinned:
            self.pinned.add(a)

    def pin(self, site: int) -> None:
        self.pinned.add(self.root(site))

    def free(self, site: int) -> bool:
        return self.root(site) not in self.pinned
