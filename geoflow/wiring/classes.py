"""Group sites into classes that move together, or against each other."""


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


class Duals:
    """Classes as above, in which a site may move by the inverse transpose of the others."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.dual: list[bool] = []  # whether a site moves against its parent
        self.pinned: set[int] = set()

    def add(self) -> None:
        self.dual.append(False)
        self.parent.append(len(self.parent))

    def root(self, site: int) -> tuple[int, bool]:
        """The first site of the class, and whether this site moves against it."""
        against = False
        while self.parent[site] != site:
            against ^= self.dual[site]
            site = self.parent[site]
        return site, against

    def tie(self, a: int, b: int, dual: bool = False) -> None:
        """Let two sites move together, or against each other. A class that would move against itself is pinned."""
        (a, one), (b, other) = sorted((self.root(a), self.root(b)))
        if a == b:
            self.pinned |= {a} if one ^ other ^ dual else set()
            return
        self.parent[b], self.dual[b] = a, one ^ other ^ dual
        if b in self.pinned:
            self.pinned.add(a)

    def pin(self, site: int) -> None:
        self.pinned.add(self.root(site)[0])

    def free(self, site: int) -> bool:
        return self.root(site)[0] not in self.pinned
