//! The page and the drawing of a circuit.

use anyhow::Result;
use endoscope_causal::{Circuit, CircuitRuns, Curve, Graph, Measures, Node, Reader};
use endoscope_models::Model;
use endoscope_report::{self as page, Claim, GraphEdge, GraphNode, Measured, Report, Section, Table, Verdict, labels};

/// What a search found.
pub struct Search {
    /// How, as the beginning of a sentence.
    pub how: String,
    pub circuit: Circuit,
    /// For each edge of the graph.
    pub scores: Vec<f64>,
    pub curve: Option<Curve>,
    /// The curve of random scores.
    pub random: Option<Curve>,
}

/// The circuit as a drawing: the input at the bottom, the logits on top.
pub fn drawing(graph: &Graph, circuit: &Circuit, scores: &[f64]) -> page::Graph {
    let mut nodes: Vec<Node> = circuit.nodes(graph);
    // What is fed but read by nothing (in a circuit that was not pruned) stands there, too.
    for edge in circuit.edges(graph) {
        for node in graph.nodes_of(edge.to) {
            if !nodes.contains(&node) && graph.nodes_of(edge.to).iter().all(|other| !nodes.contains(other)) {
                nodes.push(node);
            }
        }
    }
    nodes.sort_by_key(|&node| graph.node_number(node));
    let rank = |node: Node| match node {
        Node::Input => 0,
        Node::Head { layer, .. } => 2 * layer + 1,
        Node::Mlp { layer } => 2 * layer + 2,
    };
    // Rows without a node are left out.
    let mut rows: Vec<usize> = nodes.iter().map(|&node| rank(node)).collect();
    rows.sort_unstable();
    rows.dedup();
    let row = |node: Node| rows.iter().position(|&row| row == rank(node)).unwrap_or(0);
    let mut drawn: Vec<GraphNode> =
        nodes.iter().map(|&node| GraphNode { name: node.to_string(), rank: row(node) }).collect();
    drawn.push(GraphNode { name: "logits".into(), rank: rows.len() });
    let number = |node: Node| nodes.iter().position(|&known| known == node);
    let mut edges = Vec::new();
    for edge in circuit.edges(graph) {
        let label = match edge.to {
            Reader::Head { part, .. } => part.letter().to_string(),
            Reader::Mlp { .. } | Reader::Logits => String::new(),
        };
        let weight = graph.number(edge).ok().and_then(|number| scores.get(number)).copied().unwrap_or(0.);
        let to: Vec<usize> = match edge.to {
            Reader::Logits => vec![nodes.len()],
            reader => graph.nodes_of(reader).into_iter().filter_map(number).collect(),
        };
        let Some(from) = number(edge.from) else { continue };
        edges.extend(to.into_iter().map(|to| GraphEdge { from, to, label: label.clone(), weight }));
    }
    page::Graph { nodes: drawn, edges }
}

/// The page.
pub fn report(
    model: &Model,
    runs: &CircuitRuns,
    search: &Search,
    measures: &Measures,
    random: Option<f64>,
) -> Result<Report> {
    let graph = &runs.graph;
    let share = |found: Option<f64>| found.map_or("not defined".to_string(), |found| format!("{found:.3}"));
    let summary = format!(
        "{} in {}. Of {} edges {} are left, of {} nodes {}. The metric is {}: {:.4} with every edge, {:.4} with every edge ablated, \
         {:.4} with the circuit alone, {:.4} with everything but the circuit.",
        search.how,
        model.directory.display(),
        graph.len(),
        measures.edges,
        graph.nodes().len(),
        measures.minimality.len(),
        runs.metric.name(),
        measures.whole,
        measures.nothing,
        measures.circuit,
        measures.complement
    );
    let mut report = Report::new("Circuit", "circuit", summary);
    report.sections.push(Section::Graph {
        heading: Some("The circuit".into()),
        graph: drawing(graph, &search.circuit, &search.scores),
        caption: "Edges with their scores: blue where the edge carries the behaviour's metric up when it is patched, red where down. \
                  Hover to read one."
            .into(),
    });
    let values = [measures.faithfulness, measures.completeness, random];
    let axes = [("measure", labels(["faithfulness", "completeness", "random circuits of as many edges, mean"]))];
    report
        .tables
        .insert("measures".into(), Table::with_missing("0 = nothing, 1 = the whole network", axes, values.to_vec())?);
    report.sections.push(Section::Table {
        heading: Some("What it explains".into()),
        table: "measures".into(),
        caption:
            "Faithfulness: how much of the metric the circuit alone has. Completeness: how much is lost without it."
                .into(),
    });
    if !measures.minimality.is_empty() {
        let nodes = labels(measures.minimality.iter().map(|(node, _)| node.to_string()));
        let values = measures.minimality.iter().map(|(_, lost)| *lost).collect();
        let table = Table::with_missing("what the circuit loses without the node", [("node", nodes)], values)?;
        report.tables.insert("minimality".into(), table);
        report.sections.push(Section::Table {
            heading: Some("Without each node".into()),
            table: "minimality".into(),
            caption: "Near 0: the circuit does as well without the node, so it is not minimal.".into(),
        });
    }
    if let (Some(found), Some(random)) = (&search.curve, &search.random) {
        let shares = labels(found.points.iter().map(|point| format!("{}%", 100. * point.share)));
        let values =
            [found, random].iter().flat_map(|curve| curve.points.iter().map(|point| point.faithfulness)).collect();
        let axes = [("scores", labels(["these", "random"])), ("share of edges", shares)];
        report.tables.insert("curve".into(), Table::new("faithfulness", axes, values)?);
        report.sections.push(Section::Lines {
            heading: Some("Circuits of growing size".into()),
            table: "curve".into(),
            caption: format!(
                "Area under the curve (CPR) {:.3}, between the curve and 1 (CMD) {:.3}; with random scores {:.3} and {:.3}.",
                found.cpr, found.cmd, random.cpr, random.cmd
            ),
            y_label: "faithfulness".into(),
        });
    }
    let control = format!("random circuits of as many edges have faithfulness {} on average", share(random));
    let verdict = match (measures.faithfulness, random) {
        (Some(found), Some(random)) if found >= 0.8 && random < found / 2. => Verdict::Shown,
        (Some(found), Some(random)) if found > random => Verdict::Partly,
        _ => Verdict::NotShown,
    };
    let measured = Measured::number(measures.faithfulness.unwrap_or(0.), "faithfulness");
    report.claims.push(Claim::new(
        format!("{} of {} edges do what the whole network does", measures.edges, graph.len()),
        measured,
        control,
        verdict,
    )?);
    Ok(report)
}
