//! What the heads of an induction model attend to, and what is left without them.

use candle_core::{D, Tensor};
use endoscope_models::Decoder;
use endoscope_net::{AxisName, Capture, Change, Edit, Index, Inputs, Network, Plan};
use endoscope_organisms::Task;

/// The fraction of the certain answers that the model gives.
pub fn accuracy(decoder: &Decoder, task: &dyn Task, rows: &[Vec<u32>], plan: &Plan) -> f64 {
    let outputs = decoder.run(&Inputs::tokens(rows.to_vec()).unwrap(), plan).unwrap().outputs;
    let best = outputs.argmax(D::Minus1).unwrap().to_vec2::<u32>().unwrap();
    let (mut right, mut all) = (0, 0);
    for (row, best) in rows.iter().zip(&best) {
        for (at, answer) in task.answers(row).into_iter().enumerate() {
            let Some(answer) = answer else { continue };
            all += 1;
            right += usize::from(best[at - 1] == answer);
        }
    }
    f64::from(right as u32) / f64::from(all)
}

/// The mean attention of every head to the key that `offset` says, over the queries where it says one.
pub fn score(decoder: &Decoder, rows: &[Vec<u32>], key: impl Fn(usize) -> Option<usize>) -> Vec<Vec<f64>> {
    let plan = Plan::default().capture(Capture::new("pattern.*"));
    let run = decoder.run(&Inputs::tokens(rows.to_vec()).unwrap(), &plan).unwrap();
    let length = rows[0].len();
    run.captured
        .iter()
        .map(|(_, pattern): (&str, &Tensor)| {
            let mean = pattern.mean(0).unwrap().to_vec3::<f32>().unwrap();
            let of = |head: &Vec<Vec<f32>>| {
                let cells: Vec<f64> =
                    (0..length).filter_map(|query| key(query).map(|key| f64::from(head[query][key]))).collect();
                cells.iter().sum::<f64>() / cells.len() as f64
            };
            mean.iter().map(of).collect()
        })
        .collect()
}

/// Attention to the token before in the first copy, which is where the induction heads read it.
pub fn previous_token(decoder: &Decoder, rows: &[Vec<u32>], n: usize) -> Vec<Vec<f64>> {
    score(decoder, rows, |query| (2..=n).contains(&query).then(|| query - 1))
}

/// Attention, in the second copy, to the token after the same word in the first.
pub fn induction(decoder: &Decoder, rows: &[Vec<u32>], n: usize) -> Vec<Vec<f64>> {
    score(decoder, rows, |query| (query > n).then(|| query - n + 1))
}

/// Zeroes what these heads read, at these positions.
pub fn without(heads: &[(usize, usize)], positions: Index) -> Plan {
    heads.iter().fold(Plan::default(), |plan, &(layer, head)| {
        let edit = Edit::new(format!("z.{layer}"), Change::Zero);
        plan.edit(edit.at(AxisName::Head, Index::At(head as i64)).at(AxisName::Position, positions.clone()))
    })
}
