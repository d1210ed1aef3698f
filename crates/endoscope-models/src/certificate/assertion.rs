//! What a certificate asserts, and how far a figure may be from it.

use serde::Serialize;

/// What one check asserts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Assertion {
    /// Of the weights' files.
    Weights,
    /// Of every site.
    Finite,
    /// Of embeddings.
    Embeddings,
    /// Of norms.
    Norms,
    /// Of queries, keys and values.
    QueriesKeysValues,
    /// Of rotary positions.
    Rotation,
    /// Of rotary positions, without their angles.
    RotationKeepsLength,
    /// Of attention scores.
    Scores,
    /// Of the pattern.
    Softmax,
    /// Of the pattern's rows.
    RowsSumToOne,
    /// Of what a query must not see.
    Masked,
    /// Of pattern and values.
    PatternTimesValues,
    /// Of attention's output.
    AttentionOut,
    /// Of the heads' results.
    HeadResults,
    /// Of an MLP's neurons.
    Neurons,
    /// Of an MLP's output.
    MlpOut,
    /// Of a router.
    Router,
    /// Of the experts chosen.
    ExpertsChosen,
    /// Of the experts' output.
    ExpertsOut,
    /// Of what attention and MLP add to the stream.
    Writes,
    /// Of the residual stream.
    Stream,
    /// Of logits.
    Logits,
    /// Of the same run twice.
    Repeats,
    /// Of reading.
    Reading,
    /// Of writing back.
    WritingBack,
    /// Of the cache.
    Cache,
    /// Of rows of one length.
    Batch,
    /// Of rows of different lengths.
    Padding,
    /// Of text.
    RoundTrip,
    /// Of the beginning-of-sequence token.
    BeginningOfSequence,
    /// Of token ids.
    Vocabulary,
    /// Of somebody else's activations.
    Reference,
}

/// Of the largest value of a site: what f32 loses in one operation.
const ROUNDING: f64 = 1e-6;
/// Of the largest value of a site: what f32 loses in a sum of many terms. It is what two independent implementations of the
/// same model differ by.
const SUM: f64 = 3e-5;
/// Not one bit, or not one case.
const NONE: f64 = 0.;

impl Assertion {
    /// All of them, in the order of a certificate.
    pub const ALL: [Self; 32] = [
        Self::Weights,
        Self::Finite,
        Self::Embeddings,
        Self::Norms,
        Self::QueriesKeysValues,
        Self::Rotation,
        Self::RotationKeepsLength,
        Self::Scores,
        Self::Softmax,
        Self::RowsSumToOne,
        Self::Masked,
        Self::PatternTimesValues,
        Self::AttentionOut,
        Self::HeadResults,
        Self::Neurons,
        Self::MlpOut,
        Self::Router,
        Self::ExpertsChosen,
        Self::ExpertsOut,
        Self::Writes,
        Self::Stream,
        Self::Logits,
        Self::Repeats,
        Self::Reading,
        Self::WritingBack,
        Self::Cache,
        Self::Batch,
        Self::Padding,
        Self::RoundTrip,
        Self::BeginningOfSequence,
        Self::Vocabulary,
        Self::Reference,
    ];

    /// In words. A figure is the largest difference over the largest value of the site, unless the words say otherwise.
    pub fn says(self) -> &'static str {
        self.definition().0
    }

    /// The largest figure that is allowed; of [`Assertion::Reference`] the part that does not grow with the site's values.
    pub fn tolerance(self) -> f64 {
        self.definition().1
    }

    fn definition(self) -> (&'static str, f64) {
        match self {
            Self::Weights => ("every tensor of the files is read once; figure: tensors read more often", NONE),
            Self::Finite => ("no activation is infinite or not a number; figure: how many are", NONE),
            Self::Embeddings => ("embeddings are the tokens' rows, scaled, and the positions' rows", ROUNDING),
            Self::Norms => ("norms divide by their scale, weigh and shift", SUM),
            Self::QueriesKeysValues => ("queries, keys and values are projections of what attention reads", SUM),
            Self::Rotation => ("queries and keys are turned by the angles of their positions", SUM),
            Self::RotationKeepsLength => ("rotation keeps lengths, but for its attention factor", SUM),
            Self::Scores => ("scores are query times key, scaled, capped, biased and masked", SUM),
            Self::Softmax => ("the pattern is the softmax of the scores", ROUNDING),
            Self::RowsSumToOne => ("rows of the pattern sum to 1", ROUNDING),
            Self::Masked => ("nothing is seen of later keys, nor before the window; figure: the largest weight", NONE),
            Self::PatternTimesValues => ("pattern times values is z", SUM),
            Self::AttentionOut => ("z projected is what attention puts out", SUM),
            Self::HeadResults => ("the heads' results and the bias sum to what attention puts out", SUM),
            Self::Neurons => ("neurons are projections of what the MLP reads, activated", SUM),
            Self::MlpOut => ("neurons projected are what the MLP puts out", SUM),
            Self::Router => ("experts' probabilities are the softmax of the router's projection", SUM),
            Self::ExpertsChosen => ("the chosen experts are the most probable; figure: rows where they are not", NONE),
            Self::ExpertsOut => ("what the chosen experts put out, weighed, is what is put out", SUM),
            Self::Writes => ("what is put out, normalised and scaled, is what is added to the stream", SUM),
            Self::Stream => ("the stream is the sum of all that is added to it", SUM),
            Self::Logits => ("logits are the unembedding of the normalised stream, scaled and capped", SUM),
            Self::Repeats => ("the same run gives the same bits again; figure: logits that differ", NONE),
            Self::Reading => ("reading every site changes no bit; figure: logits that differ", NONE),
            Self::WritingBack => ("writing back at every site what was read there changes nothing", 1e-5),
            Self::Cache => ("token by token with the cache gives the same bits; figure: logits that differ", NONE),
            Self::Batch => ("a row of a batch gives the bits that it gives alone; figure: logits that differ", NONE),
            Self::Padding => ("so does a row among longer ones, on either side; figure: logits that differ", NONE),
            Self::RoundTrip => ("text encoded and decoded is the same text; figure: texts that are not", NONE),
            Self::BeginningOfSequence => {
                ("the beginning-of-sequence token comes once where it is configured; figure: texts without", NONE)
            }
            Self::Vocabulary => ("every token has an embedding; figure: tokens that have none", NONE),
            Self::Reference => ("every site is that of the reference; figure: the largest difference", SUM),
        }
    }
}
