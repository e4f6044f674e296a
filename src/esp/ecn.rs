//! Explicit congestion notification through the tunnel (RFC 6040).
//!
//! Outbound is the "normal mode" of §4.1: the outer ECN bits are the inner ones. Inbound is the table of §4.2. The other six
//! bits, the DSCP, are not copied in either direction: they would show an observer which flow is which, let containers
//! choose how the underlay queues, and (as each class may overtake another) push packets out of the replay window (RFC 4301
//! §5.1.2.1 leaves the choice to us).

use crate::model::DropReason;

/// Not-ECT: the transport does not understand ECN.
pub const NOT_ECT: u8 = 0b00;
/// ECT(1).
pub const ECT_1: u8 = 0b01;
/// ECT(0).
pub const ECT_0: u8 = 0b10;
/// CE: congestion was experienced.
pub const CE: u8 = 0b11;

/// RFC 6040 §4.2, figure 4: the ECN bits with which a packet leaves the tunnel.
///
/// # Errors
/// [`DropReason::EcnInvalid`] if congestion was marked on a packet whose transport cannot hear of it: the drop is then the
/// only signal.
pub const fn decapsulate(inner: u8, outer: u8) -> Result<u8, DropReason> {
    match (inner & 0b11, outer & 0b11) {
        (NOT_ECT, CE) => Err(DropReason::EcnInvalid),
        (ECT_0 | ECT_1, CE) => Ok(CE),
        (ECT_0, ECT_1) => Ok(ECT_1),
        (inner, _) => Ok(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decapsulation_is_figure_4() {
        // Rows: inner Not-ECT, ECT(0), ECT(1), CE. Columns: outer Not-ECT, ECT(0), ECT(1), CE.
        let figure = [
            [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None],
            [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)],
            [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)],
            [Some(CE), Some(CE), Some(CE), Some(CE)],
        ];
        let order = [NOT_ECT, ECT_0, ECT_1, CE];
        for (row, inner) in order.into_iter().enumerate() {
            for (column, outer) in order.into_iter().enumerate() {
                assert_eq!(decapsulate(inner, outer).ok(), figure[row][column], "inner {inner:02b}, outer {outer:02b}");
            }
        }
    }
}
