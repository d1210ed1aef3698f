//! Graphs, and what paths that were seen show of them.

/// A relation between nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    nodes: usize,
    cells: Vec<bool>,
}

impl Matrix {
    /// A relation that holds nowhere.
    pub fn new(nodes: usize) -> Self {
        Self { nodes, cells: vec![false; nodes * nodes] }
    }

    /// Between how many nodes.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Whether it holds from the first to the second node; never for what is no node.
    pub fn holds(&self, from: usize, to: usize) -> bool {
        from < self.nodes && to < self.nodes && self.cells[from * self.nodes + to]
    }

    /// Lets it hold from the first to the second node; what is no node is left out.
    pub fn set(&mut self, from: usize, to: usize) {
        if from < self.nodes && to < self.nodes {
            self.cells[from * self.nodes + to] = true;
        }
    }

    /// The nodes to which it holds from this one, ascending.
    pub fn after(&self, from: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes).filter(move |&to| self.holds(from, to))
    }

    /// Where paths of one edge or more lead, if this is the edges (Warshall 1962).
    pub fn closure(&self) -> Self {
        let (nodes, mut reached) = (self.nodes, self.clone());
        for middle in 0..nodes {
            let onwards = reached.cells[middle * nodes..][..nodes].to_vec();
            for from in (0..nodes).filter(|&from| from != middle) {
                let row = &mut reached.cells[from * nodes..][..nodes];
                if row[middle] {
                    row.iter_mut().zip(&onwards).for_each(|(cell, &further)| *cell |= further);
                }
            }
        }
        reached
    }

    /// The least number of steps from each node to each other, if this is the edges; `None` where no path leads.
    pub fn distances(&self, from: usize) -> Vec<Option<usize>> {
        let mut distances = vec![None; self.nodes];
        let (mut front, mut steps) = (vec![from], 0);
        while !front.is_empty() {
            steps += 1;
            let mut next = Vec::new();
            for to in front.iter().flat_map(|&node| self.after(node)) {
                if distances[to].is_none() {
                    distances[to] = Some(steps);
                    next.push(to);
                }
            }
            front = next;
        }
        distances
    }
}

/// A graph, and what some paths showed of it (the paper's observed matrices).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenGraph {
    /// The edges.
    pub adjacency: Matrix,
    /// From node to node: whether there is a path, of one edge or more.
    pub reachability: Matrix,
    /// Whether some path seen goes over this edge.
    pub seen_adjacency: Matrix,
    /// From target to node: whether the node, not as the source, is on some path seen with this target.
    pub seen_reachability: Matrix,
}

impl SeenGraph {
    /// Of the edges, and the paths seen, each with the target that was named with it.
    pub fn new(adjacency: Matrix, paths: impl IntoIterator<Item = (usize, Vec<usize>)>) -> Self {
        let nodes = adjacency.nodes;
        let (mut seen_adjacency, mut seen_reachability) = (Matrix::new(nodes), Matrix::new(nodes));
        for (target, path) in paths {
            path.windows(2).for_each(|step| seen_adjacency.set(step[0], step[1]));
            path.iter().skip(1).for_each(|&node| seen_reachability.set(target, node));
        }
        Self { reachability: adjacency.closure(), adjacency, seen_adjacency, seen_reachability }
    }

    /// How much a path from `source` to `target` must be put together from what was seen (the paper's degree): 0 if the
    /// source was seen on a path to the target, 1 if a node after it was, 2 if one after that; 3 stands for more.
    /// `None` without a path.
    pub fn degree(&self, source: usize, target: usize) -> Option<usize> {
        let seen = |node: usize| self.seen_reachability.holds(target, node);
        let after = |node: usize| self.adjacency.after(node);
        self.reachability.holds(source, target).then(|| match source {
            source if seen(source) => 0,
            source if after(source).any(seen) => 1,
            source if after(source).any(|next| after(next).any(seen)) => 2,
            _ => 3,
        })
    }

    /// Whether this is a path from its first to its last node.
    pub fn is_path(&self, path: &[usize]) -> bool {
        path.len() > 1 && path.windows(2).all(|step| self.adjacency.holds(step[0], step[1]))
    }
}
